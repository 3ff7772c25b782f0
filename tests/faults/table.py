"""The table of faults: what goes wrong, at which moment, and what must hold after it. docs/faults.md shows it; a test compares them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from olivine_api.reasons import Reason
from tests.faults import plays
from tests.faults.scene import Scene

# An undisturbed life has at most six Events; an incident adds two (the failure, the next pod), a suspension three.
CALM_EVENTS = 6


class Result(StrEnum):
    """How the job ends."""

    SAME = "the calm run's adapter, byte for byte"
    HALVED = "an adapter of the same effective batch"
    CANCELLED = "Failed/Cancelled, nothing published, checkpoints kept"


class Lost(StrEnum):
    """Steps that may have to be trained again."""

    NONE = "none"
    SINCE_CHECKPOINT = "since the checkpoint"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault. `restarts` and `attempt` are ranges, both ends included."""

    id: str
    fault: str
    moment: str
    play: Callable[[Scene], None]
    core: bool = False
    """Runs in `make test`; the others in `make test-full` only."""
    pods: int = 1
    alone: bool = False
    """It harms every job of the cluster: no other row runs meanwhile."""
    result: Result = Result.SAME
    restarts: tuple[int, int] = (0, 0)
    attempt: tuple[int, int] = (1, 1)
    lost: Lost = Lost.NONE
    failure: tuple[str, ...] = ("",)
    """What status.lastFailure.reason may be; "" where there is none."""
    events: int = CALM_EVENTS
    spec: dict[str, Any] = field(default_factory=dict[str, Any])

    def cells(self) -> tuple[str, ...]:
        """As the page shows it."""
        failure = " or ".join(reason or "none" for reason in self.failure)
        return (
            f"`{self.id}`", self.fault, self.moment, self.result.value, _range(self.restarts), _range(self.attempt),
            self.lost.value, failure, str(self.events), "test" if self.core else "test-full",
        )  # fmt: skip


def _range(ends: tuple[int, int]) -> str:
    low, high = ends
    return str(low) if low == high else f"{low} to {high}"


HEADER = ("row", "fault", "moment", "the job ends with", "restarts", "attempt", "lost steps", "lastFailure", "Events at most", "in")
_ONE_INCIDENT: dict[str, Any] = {"restarts": (1, 1), "attempt": (2, 2), "lost": Lost.SINCE_CHECKPOINT, "events": CALM_EVENTS + 2}
_FREE_RESTART: dict[str, Any] = {"attempt": (2, 2), "events": CALM_EVENTS + 2}
# The pod that makes room has not failed; where the operator sees it only after the resume, it tells of an interruption.
_SUSPENSION: dict[str, Any] = {"failure": ("", Reason.INTERRUPTED), "events": CALM_EVENTS + 4}
_CANCELLED: dict[str, Any] = {"result": Result.CANCELLED, "attempt": (0, 1)}

ROWS: tuple[Row, ...] = (
    Row(
        id="killed",
        fault="SIGKILL of the only pod",
        moment="at a drawn step",
        play=plays.killed,
        core=True,
        failure=(Reason.POD_FAILED,),
        **_ONE_INCIDENT,
    ),
    Row(
        id="killed-after-publishing",
        fault="SIGKILL of the only pod",
        moment="between the publication and the pod's end",
        play=plays.killed_after_publishing,
        restarts=(1, 1),
        failure=(Reason.POD_FAILED,),
        events=CALM_EVENTS + 2,
    ),
    Row(
        id="sigterm",
        fault="SIGTERM: exit 40",
        moment="at a drawn step",
        play=plays.asked_to_go,
        core=True,
        failure=(Reason.INTERRUPTED,),
        **_FREE_RESTART,
    ),
    Row(
        id="operator-killed",
        fault="SIGKILL of the operator",
        moment="at a drawn step",
        play=plays.operator_killed,
        core=True,
    ),
    Row(
        id="flipped-byte",
        fault="one bit of the newest checkpoint flips, then SIGKILL",
        moment="at a drawn step, before the resume",
        play=plays.flipped_byte,
        core=True,
        failure=(Reason.POD_FAILED,),
        **_ONE_INCIDENT,
    ),
    Row(
        id="missing-part",
        fault="a part of the newest checkpoint is deleted, then SIGKILL",
        moment="at a drawn step, before the resume",
        play=plays.missing_part,
        failure=(Reason.POD_FAILED,),
        **_ONE_INCIDENT,
    ),
    Row(
        id="torn-upload",
        fault="the newest checkpoint's upload is cut off, then SIGKILL",
        moment="at a drawn step, before the resume",
        play=plays.torn_upload,
        failure=(Reason.POD_FAILED,),
        **_ONE_INCIDENT,
    ),
    Row(
        id="evicted",
        fault="the Eviction API",
        moment="at a drawn step",
        play=plays.evicted,
        failure=("EvictionByEvictionAPI",),
        **_FREE_RESTART,
    ),
    Row(
        id="out-of-memory",
        fault="the kernel kills the worker for memory",
        moment="at a drawn step",
        play=plays.out_of_memory,
        result=Result.HALVED,
        failure=(Reason.OUT_OF_MEMORY,),
        **_ONE_INCIDENT,
    ),
    Row(
        id="zombie",
        fault="a second writer takes the run over and finishes it; then the first wakes up",
        moment="at a drawn step",
        play=plays.zombie,
        restarts=(1, 1),
        attempt=(2, 2),
        lost=Lost.SINCE_CHECKPOINT,
        failure=(Reason.SUPERSEDED,),
        events=CALM_EVENTS + 2,
    ),
    Row(
        id="child-deleted",
        fault="somebody deletes the child Job",
        moment="at a drawn step",
        play=plays.child_deleted,
        restarts=(1, 1),
        attempt=(2, 2),
        failure=(Reason.CHILD_LOST,),
        events=CALM_EVENTS + 2,
    ),
    Row(
        id="suspended",
        fault="spec.suspend, and back once no pod runs",
        moment="at a drawn step",
        play=plays.suspended,
        attempt=(2, 2),
        **_SUSPENSION,
    ),
    Row(
        id="suspended-while-starting",
        fault="spec.suspend, and back once no pod runs",
        moment="while the first pod loads its libraries",
        play=plays.suspended_while_starting,
        attempt=(1, 2),
        **_SUSPENSION,
    ),
    Row(
        id="suspended-and-back-at-once",
        fault="spec.suspend, and back before the pod has gone",
        moment="at a drawn step",
        play=plays.suspended_and_back_at_once,
        attempt=(2, 2),
        **_SUSPENSION,
    ),
    Row(
        id="cancelled",
        fault="spec.cancel",
        moment="at a drawn step",
        play=plays.cancelled,
        **_CANCELLED,
    ),
    Row(
        id="cancelled-before-a-pod",
        fault="spec.cancel",
        moment="right after the job was made",
        play=plays.cancelled_before_a_pod,
        **_CANCELLED,
    ),
    Row(
        id="image-missing",
        fault="the image cannot be pulled; told within 30 s; the user cancels",
        moment="at the start",
        play=plays.image_missing,
        spec={"pods": {"image": "olivine.local/no-such-image:1", "imagePullPolicy": "IfNotPresent"}},
        **_CANCELLED,
    ),
    Row(
        id="secret-missing",
        fault="the storage's Secret is missing; told within 30 s; the user creates it",
        moment="at the start",
        play=plays.secret_missing,
        events=CALM_EVENTS + 1,
        spec={"storage": {"secretRef": {"name": "secret-missing-storage"}}},
    ),
    Row(
        id="two-pods-killed",
        fault="SIGKILL of either of two pods",
        moment="at a drawn step",
        play=plays.killed,
        pods=2,
        failure=(Reason.POD_FAILED,),
        **_ONE_INCIDENT,
    ),
    Row(
        id="two-pods-killed-after-publishing",
        fault="SIGKILL of the pod with index 1",
        moment="between the publication and the pod's end",
        play=plays.second_rank_killed_after_publishing,
        pods=2,
        restarts=(0, 1),
        failure=("", Reason.POD_FAILED),
        events=CALM_EVENTS + 2,
    ),
    Row(
        id="two-pods-sigterm",
        fault="SIGTERM to both pods: exit 40",
        moment="at a drawn step",
        play=plays.asked_to_go,
        pods=2,
        failure=(Reason.INTERRUPTED,),
        **_FREE_RESTART,
    ),
    Row(
        id="two-pods-one-sigterm",
        fault="SIGTERM to either of two pods: both exit 40",
        moment="at a drawn step",
        play=plays.one_asked_to_go,
        pods=2,
        failure=(Reason.INTERRUPTED,),
        **_FREE_RESTART,
    ),
    Row(
        id="store-down",
        fault="the store is down for 30 s",
        moment="at a drawn step",
        play=plays.store_down,
        alone=True,
        restarts=(0, 2),
        attempt=(1, 3),
        lost=Lost.SINCE_CHECKPOINT,
        failure=("", Reason.STORAGE_UNAVAILABLE),
        events=CALM_EVENTS + 4,
    ),
    Row(
        id="node-silent",
        fault="the node's kubelet stands still until the node counts as lost, then comes back",
        moment="at a drawn step",
        play=plays.kubelet_silent,
        alone=True,
        events=CALM_EVENTS + 2,
    ),
)


def render(rows: tuple[Row, ...] = ROWS) -> str:
    """The table as the page shows it."""
    lines = [HEADER, tuple("---" for _ in HEADER), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
