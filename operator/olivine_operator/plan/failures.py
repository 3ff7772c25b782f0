"""Failed pods: why each ended, and when the Job controller tries again."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from olivine_api.exit_codes import Category, ExitCode, category_of
from olivine_api.reasons import Reason
from olivine_api.status import Failure, TerminationMessage
from olivine_operator.plan.conditions import truncate
from olivine_operator.plan.observed import PodView, Termination
from olivine_operator.plan.snapshots import UnboundedNumberError, refuse_unbounded

# A store that is down for long, or a peer that is lost, says nothing about the pod that ends: maxRestarts bounds them.
_NO_CRASH = (ExitCode.STORAGE, ExitCode.PEER_LOST)
_OOM_KILLED = "OOMKilled"
_FIRST_DELAY, LONGEST_DELAY = 10, 600


@dataclass(frozen=True, kw_only=True)
class PodFailure:
    """Why a pod failed."""

    pod: str
    at: datetime
    category: Category
    reason: str
    message: str
    step: int | None = None
    index: int = 0
    attempt: int | None = None
    """What the pod worked for; None where it did not know yet, or could not tell."""
    costs_retry: bool = True
    crash: bool = False
    """Whether the next pod is likely to end the same way."""
    peer_lost: bool = False
    """Whether it only ended because another one had."""
    out_of_memory: bool = False

    def to_status(self) -> Failure:
        """As status tells it."""
        return Failure(category=self.category, reason=self.reason, message=self.message, at=self.at, step=self.step)


def termination_message(pod: PodView) -> TerminationMessage | None:
    """What PID 1 left in the termination log; None where it left nothing that can be read."""
    if pod.termination is None or not pod.termination.message:
        return None
    try:
        raw = json.loads(pod.termination.message)
        refuse_unbounded(raw)
        return TerminationMessage.model_validate(raw)
    except (ValueError, RecursionError, ValidationError, UnboundedNumberError):
        return None


def failures_of(pods: Iterable[PodView]) -> tuple[PodFailure, ...]:
    """The failures of all failed pods, oldest first."""
    found = [failure_of(pod) for pod in pods if pod.phase == "Failed"]
    return tuple(sorted(found, key=lambda failure: (failure.at, failure.pod)))


def failure_of(pod: PodView) -> PodFailure:
    """Why a failed pod ended."""
    end = pod.termination
    at = _time_of(pod)
    told = termination_message(pod)
    if end is not None and category_of(end.exit_code) is Category.USER:
        # Before all else: the Job fails at once on these codes, whatever else befell the pod.
        return PodFailure(
            pod=pod.name,
            at=at,
            category=Category.USER,
            reason=told.reason if told is not None else Reason.POD_FAILED,
            message=told.message if told is not None else f"the trainer ended with exit code {end.exit_code} and left no message",
            step=told.step if told is not None else None,
            index=pod.index,
            attempt=told.attempt if told is not None else None,
            costs_retry=False,
        )
    reason, message = _infrastructure(pod, end, told)
    code = end.exit_code if end is not None else None
    free = pod.disruption is not None or pod.deleting or code == ExitCode.INTERRUPTED
    out_of_memory = end is not None and (end.reason == _OOM_KILLED or code == ExitCode.OUT_OF_MEMORY)
    return PodFailure(
        pod=pod.name,
        at=at,
        category=Category.INFRASTRUCTURE,
        reason=reason,
        message=truncate(message),
        step=told.step if told is not None else None,
        index=pod.index,
        attempt=told.attempt if told is not None else None,
        costs_retry=not free,
        # Out of memory has its own end: a micro-batch of 1.
        crash=not free and not out_of_memory and code not in _NO_CRASH,
        peer_lost=code == ExitCode.PEER_LOST,
        out_of_memory=out_of_memory and not free,
    )


def _infrastructure(pod: PodView, end: Termination | None, told: TerminationMessage | None) -> tuple[str, str]:
    if pod.disruption is not None:
        return pod.disruption.reason or Reason.POD_LOST, f"pod {pod.name} was removed from its node: {pod.disruption.message}"
    if end is not None and end.reason == _OOM_KILLED:
        limit = f" ({pod.memory_limit})" if pod.memory_limit else ""
        return Reason.OUT_OF_MEMORY, f"pod {pod.name} used more memory than its limit{limit}"
    if told is not None:
        return told.reason, told.message
    if end is not None:
        detail = f" ({end.reason})" if end.reason and end.reason != "Error" else ""
        return Reason.POD_FAILED, f"pod {pod.name} ended with exit code {end.exit_code}{detail} and left no message"
    return pod.reason or Reason.POD_FAILED, f"pod {pod.name} failed before its container ran"


def _time_of(pod: PodView) -> datetime:
    if pod.termination is not None and pod.termination.at is not None:
        return pod.termination.at
    if pod.disruption is not None and pod.disruption.since is not None:
        return pod.disruption.since
    return pod.created


def next_retry(failures: Sequence[PodFailure], missing: Collection[int] = (0,)) -> datetime | None:
    """About when the last of the missing indexes has a pod again.

    The Job controller counts each index by itself, ignored failures included: it waits 10 s x 2^n, at most 600 s.
    """
    times: list[datetime] = []
    for index in missing:
        of_index = [failure for failure in failures if failure.index == index]
        if of_index:
            delay = LONGEST_DELAY if len(of_index) >= 8 else min(_FIRST_DELAY * 2 ** (len(of_index) - 1), LONGEST_DELAY)
            times.append(of_index[-1].at + timedelta(seconds=delay))
    return max(times, default=None)
