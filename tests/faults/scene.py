"""One job under fault: where its run stands, what its store holds, and the moments at which faults are played."""

import functools
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from olivine_api.status import FineTuneJobStatus
from tests.support.cluster import Cluster, s3
from tests.support.pods import Held, TrainerPod, at_step, hold
from tests.support.trainings import CHECKPOINT_STEPS
from tests.support.wait import wait_for

NAMESPACE = "fault-tests"
# The first step with a checkpoint behind it, the first with two, and the last that leaves time to hit it: some 2 s of training.
FIRST_DRAWN, AFTER_TWO, LAST_DRAWN = CHECKPOINT_STEPS + 1, 2 * CHECKPOINT_STEPS + 1, 150
_MANIFEST = re.compile(r"checkpoints/(step-(\d+)-a\d+)/manifest\.json$")


@dataclass
class Scene:
    """One row's job while the fault is played."""

    cluster: Cluster
    job: str
    draw: random.Random
    """Seeded by the session's seed and the row's name."""
    pods: int = 1
    step: int = 0
    """Where the workers stood when the fault came."""
    saved: int = 0
    """The newest step that was whole in the store then."""
    restored: int | None = None
    """The step that the next attempt must resume from; None where it is `saved`."""
    held: Held | None = None
    """What stands still, or stood."""
    notes: dict[str, Any] = field(default_factory=dict[str, Any])
    """What a play wants to tell where its row fails."""

    def hold(self, moment: Callable[[TrainerPod], bool]) -> Held:
        """Stops the workers at a moment, and notes where that is."""
        self.held = held = hold(self.cluster, self.job, moment, pods=self.pods)
        self.step, self.saved = held.step, self.whole_checkpoints()[-1] if self.whole_checkpoints() else 0
        self.notes |= {"step": self.step, "saved": self.saved}
        assert not self.published(), f"{self.job} was over before the fault came: the steps are too short to be hit"
        return held

    def hold_at_drawn_step(self, low: int = FIRST_DRAWN, high: int = LAST_DRAWN) -> Held:
        """Stops the workers after a step that the seed draws."""
        drawn = self.draw.randint(low, high)
        self.notes["drawn"] = drawn
        return self.hold(at_step(drawn))

    @functools.cached_property
    def run(self) -> str:
        """The run's folder in the bucket `olivine`, from the contract alone."""
        uid = self.cluster.get("ftj", self.job)["metadata"]["uid"]
        return f"runs/{self.cluster.namespace}/{self.job}/{uid}"

    def keys(self, folder: str) -> list[str]:
        """Every key below a folder of the run, sorted."""
        found = [entry["path"] for page in s3("olivine").list(f"{self.run}/{folder}") for entry in page]
        return sorted(key.removeprefix(f"{self.run}/") for key in found)

    def read(self, key: str) -> bytes:
        """An object of the run."""
        return bytes(s3("olivine").get(f"{self.run}/{key}").bytes())

    def write(self, key: str, data: bytes) -> None:
        """Put an object of the run."""
        s3("olivine").put(f"{self.run}/{key}", data)

    def remove(self, key: str) -> None:
        """Delete an object of the run."""
        s3("olivine").delete(f"{self.run}/{key}")

    def whole_checkpoints(self) -> list[int]:
        """The steps whose manifest is there."""
        return sorted(int(found[2]) for key in self.keys("checkpoints") if (found := _MANIFEST.search(key)))

    def newest_checkpoint(self) -> str:
        """The key of the newest whole checkpoint's folder."""
        folders = [found[1] for key in self.keys("checkpoints") if (found := _MANIFEST.search(key))]
        return f"checkpoints/{max(folders)}"

    def published(self) -> bool:
        """Whether the run has its end."""
        return "run/published.json" in self.keys("run")

    def status(self) -> FineTuneJobStatus:
        """The job's status now."""
        return self.cluster.status(self.job)

    def patch(self, **spec: Any) -> None:
        """Change members of the job's spec."""
        self.cluster.kubectl("patch", "ftj", self.job, "--type=merge", "-p", json.dumps({"spec": spec}))

    def wait_running_is(self, reason: str, seconds: float) -> None:
        """Until the condition Running tells of `reason`."""

        def told() -> bool:
            return any(c.type == "Running" and c.reason == reason for c in self.status().conditions)

        wait_for(f"{self.job}: condition Running says {reason}", told, seconds=seconds, every=0.5)

    def wait_no_pod_runs(self) -> None:
        """Until no pod of the job is left that is not over."""

        def gone() -> bool:
            return all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in self.cluster.pods(self.job))

        wait_for(f"{self.job}: no pod runs", gone, seconds=60, every=0.5)

    def wait_asked_to_go(self, pod: TrainerPod) -> None:
        """Until the API server has marked a pod for deletion: SIGTERM is on its way."""

        def marked() -> bool:
            found = [p for p in self.cluster.pods(self.job) if p["metadata"]["uid"] == pod.uid]
            return not found or "deletionTimestamp" in found[0]["metadata"]

        wait_for(f"{pod.name} is asked to go", marked, seconds=60, every=0.5)

    def exit_code(self, pod: TrainerPod) -> int:
        """The exit code of a pod's trainer once it has ended."""

        def ended() -> int | None:
            found = [p for p in self.cluster.pods(self.job) if p["metadata"]["uid"] == pod.uid]
            assert found, f"{pod.name} is gone"
            states = [item["state"] for item in found[0]["status"].get("containerStatuses", [])]
            return next((state["terminated"]["exitCode"] for state in states if "terminated" in state), None)

        return wait_for(f"{pod.name} has ended", lambda: (code,) if (code := ended()) is not None else None, seconds=60, every=0.5)[
            0
        ]

    def pass_time(self, seconds: float) -> None:
        """The duration of a fault; not a wait for luck: nothing may have to happen meanwhile."""
        time.sleep(seconds)
