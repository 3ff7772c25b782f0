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
    advice = (
        "lower training.batchSize and raise training.gradientAccumulationSteps by the same factor, lower data.maxLength,"
        " or raise pods.resources.limits.memory"
    )
    exit_code, reason, message = silent_end(death, "training", memory=memory, advice=advice, asked_to_go=asked_to_go)
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


def silent_end(death: Death, work: str, *, memory: str, advice: str, asked_to_go: bool) -> tuple[int, Reason, str]:
    """What is told of a process that left no word: exit code, reason and sentence. `work`: what it did; `advice`: against too little memory."""
    code = death.code
    if death.for_memory:
        return int(ExitCode.OUT_OF_MEMORY), Reason.OUT_OF_MEMORY, f"the {work} process was killed for memory ({memory}): {advice}"
    if code in (-signal.SIGTERM, -signal.SIGINT) and asked_to_go:
        return int(ExitCode.INTERRUPTED), Reason.INTERRUPTED, f"the pod was asked to go before {work} began"
    if code < 0:
        return _KILLED, Reason.POD_FAILED, f"the {work} process was killed by {signal.Signals(-code).name}"
    return code or _KILLED, Reason.POD_FAILED, f"the {work} process ended with exit code {code} and left no word"


def _weight(death: Death, end: End) -> int:
    """What a worker's end tells of the cause: least where it only followed another's."""
    if end.code == ExitCode.DONE:
        return 0  # the run is published, whatever happened to the rest
    if death.by_us:
        return 4
    return {ExitCode.INTERRUPTED: 2, ExitCode.PEER_LOST: 3}.get(ExitCode(end.code), 1) if end.code in tuple(ExitCode) else 1
