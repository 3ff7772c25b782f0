"""How a pod ended, from how its workers did: a function of what they left."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from olivine_api.exit_codes import Category, ExitCode
from olivine_api.reasons import Reason
from olivine_api.status import TerminationMessage
from olivine_trainer.cli.team import Death
from olivine_trainer.reporting.board import WorkerFiles
from olivine_trainer.reporting.logs import fail

_KILLED = 1  # not 137: that would read as if the container itself had been killed


@dataclass(frozen=True)
class End:
    """How a worker, or the pod, ended."""

    code: int
    message: TerminationMessage


def decide(deaths: Sequence[Death], files: Mapping[int, WorkerFiles], *, leads: bool, memory: str, asked_to_go: bool) -> End:
    """The pod's end: that of the first worker that had a reason of its own, rather than losing another one.

    `leads`: this pod has index 0, and tells the whole snapshot. `memory`: peak and limit in words.
    """
    ends = [judge(death, files[death.rank], memory=memory, asked_to_go=asked_to_go) for death in deaths]
    order = sorted(range(len(ends)), key=lambda index: (_weight(deaths[index], ends[index]), index))
    end = ends[order[0]]
    if asked_to_go and end.code == ExitCode.PEER_LOST:  # the others were asked to go, too
        message = f"the pod was asked to go (SIGTERM), and {end.message.message}"
        told = end.message.model_copy(update={"reason": Reason.INTERRUPTED, "message": message})
        end = End(int(ExitCode.INTERRUPTED), told)
    leader = files.get(0)
    snapshot = end.message.snapshot
    if leads and leader is not None and end.code != ExitCode.DONE:
        final = leader.read_end()
        snapshot = (final.snapshot if final is not None else None) or leader.read_snapshot()
    known = [end.message.attempt, *(one.message.attempt for one in ends)]
    attempt = next((number for number in known if number), None)
    return End(end.code, end.message.model_copy(update={"attempt": attempt, "snapshot": snapshot if leads else None}))


def judge(death: Death, files: WorkerFiles, *, memory: str, asked_to_go: bool) -> End:
    """One worker's end: its own words where it left any, else what its death tells."""
    end, snapshot, code = files.read_end(), files.read_snapshot(), death.code
    if end is not None and code >= 0:
        return End(code, end)
    step = snapshot.progress.step if snapshot is not None else None
    if death.for_memory:
        message = (
            f"the training process was killed for memory ({memory}): lower training.batchSize and raise"
            " training.gradientAccumulationSteps by the same factor, lower data.maxLength, or raise pods.resources.limits.memory"
        )
        reason, exit_code = Reason.OUT_OF_MEMORY, int(ExitCode.OUT_OF_MEMORY)
    elif code in (-signal.SIGTERM, -signal.SIGINT) and asked_to_go:
        message, reason, exit_code = "the pod was asked to go before training began", Reason.INTERRUPTED, int(ExitCode.INTERRUPTED)
    elif code < 0:
        message = f"the training process was killed by {signal.Signals(-code).name}"
        reason, exit_code = Reason.POD_FAILED, _KILLED
    else:
        message = f"the training process ended with exit code {code} and left no word"
        reason, exit_code = Reason.POD_FAILED, code or _KILLED
    fail(message, reason=reason, rank=death.rank)
    told = TerminationMessage(
        category=Category.INFRASTRUCTURE,
        reason=reason,
        message=message,
        step=step,
        attempt=(snapshot.attempt or None) if snapshot is not None else None,
        snapshot=snapshot,
    )
    return End(exit_code, told)


def _weight(death: Death, end: End) -> int:
    """What a worker's end tells of the cause: least where it only followed another's."""
    if end.code == ExitCode.DONE:
        return 0  # the run is published, whatever happened to the rest
    if death.by_us:
        return 4
    return {ExitCode.INTERRUPTED: 2, ExitCode.PEER_LOST: 3}.get(ExitCode(end.code), 1) if end.code in tuple(ExitCode) else 1
