"""Failed pods: why each ended, which of them cost a retry, and when the Job controller tries again."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from olivine_api.exit_codes import Category, ExitCode, category_of
from olivine_api.reasons import Reason
from olivine_api.status import Failure, TerminationMessage
from olivine_operator.plan.conditions import truncate
from olivine_operator.plan.observed import PodView, Termination
from olivine_operator.plan.snapshots import UnboundedNumberError, refuse_unbounded

RESTART_TIMES_LIMIT = 64
# As many crashes in a row without a new checkpoint as are forgiven.
CRASHES_ALLOWED = 3
# A store that is down for long, or a peer that is lost, says nothing about the pod that ends: maxRestarts bounds them.
_NO_CRASH = (ExitCode.STORAGE, ExitCode.PEER_LOST)
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
    costs_retry: bool = True
    crash: bool = False
    """Whether the next pod is likely to end the same way."""

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
            costs_retry=False,
        )
    reason, message = _infrastructure(pod, end, told)
    free = pod.disruption is not None or pod.deleting or (end is not None and end.exit_code == ExitCode.INTERRUPTED)
    return PodFailure(
        pod=pod.name,
        at=at,
        category=Category.INFRASTRUCTURE,
        reason=reason,
        message=truncate(message),
        step=told.step if told is not None else None,
        costs_retry=not free,
        crash=not free and (end is None or end.exit_code not in tuple(_NO_CRASH)),
    )


def _infrastructure(pod: PodView, end: Termination | None, told: TerminationMessage | None) -> tuple[str, str]:
    if pod.disruption is not None:
        return pod.disruption.reason or Reason.POD_LOST, f"pod {pod.name} was removed from its node: {pod.disruption.message}"
    if end is not None and end.reason == "OOMKilled":
        limit = f" ({pod.memory_limit})" if pod.memory_limit else ""
        return Reason.OUT_OF_MEMORY, (
            f"pod {pod.name} used more memory than its limit{limit}: "
            "raise spec.pods.resources.limits.memory, or lower training.batchSize or data.maxLength"
        )
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


def new_incidents(failures: Iterable[PodFailure], counted: Sequence[datetime]) -> tuple[PodFailure, ...]:
    """The failures that cost a retry and are not yet in `restartTimes`.

    The time of a pod's end is its mark there, so that an operator that was restarted counts no pod twice; of a full list,
    what is older than its oldest mark was counted before.
    """
    full = len(counted) >= RESTART_TIMES_LIMIT
    return tuple(f for f in failures if f.costs_retry and f.at not in counted and not (full and f.at < min(counted)))


def too_many(restart_times: Sequence[datetime], total: int, *, max_restarts: int, window_seconds: int, now: datetime) -> bool:
    """Whether more incidents than allowed lie within the window."""
    recent = sum(1 for at in restart_times if at > now - timedelta(seconds=window_seconds))
    if max_restarts < RESTART_TIMES_LIMIT:
        return recent > max_restarts
    # Not all of them are remembered: with a full list of recent ones, the total decides.
    return recent >= RESTART_TIMES_LIMIT and total > max_restarts


def crashes_in_a_row(incidents: Iterable[PodFailure], known: int, *, checkpoint_since: datetime | None) -> int:
    """The crashes since the newest checkpoint: those that were known, and what new incidents add."""
    return known + sum(1 for f in incidents if f.crash and (checkpoint_since is None or f.at >= checkpoint_since))


def next_retry(failures: Sequence[PodFailure]) -> datetime | None:
    """About when the Job controller replaces the last failed pod: it waits 10 s x 2^n, ignored failures counted in, at most 600 s."""
    if not failures:
        return None
    delay = min(_FIRST_DELAY * 2 ** (len(failures) - 1), LONGEST_DELAY) if len(failures) < 8 else LONGEST_DELAY
    return failures[-1].at + timedelta(seconds=delay)
