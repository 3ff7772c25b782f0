"""Failed pods become numbers in status: restarts, crashes in a row, the last failure, and a smaller micro-batch."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from olivine_api.exit_codes import Category
from olivine_api.reasons import Reason
from olivine_api.status import Failure, Overrides
from olivine_operator.plan import endings
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.failures import PodFailure
from olivine_operator.plan.healing import halved
from olivine_operator.plan.incidents import (
    PEER_LAG,
    RESTART_TIMES_LIMIT,
    Incident,
    crashes_in_a_row,
    early,
    incidents_of,
    new_incidents,
)
from olivine_operator.plan.observed import ChildView

_MIB = 2**20


def count_incidents(draft: Draft, child: ChildView, failed: Sequence[PodFailure], *, checkpoint_since: datetime | None) -> bool:
    """Counts what was not counted yet, and heals it where it can be; returns whether the last failure is news."""
    known = incidents_of(failed)
    fresh = _without_early(draft, child, new_incidents(known, draft.status.restart_times))
    if fresh:
        times = sorted([*draft.status.restart_times, *(incident.at for incident in fresh)])
        draft.update(
            restarts=draft.status.restarts + len(fresh),
            restart_times=times[-RESTART_TIMES_LIMIT:],
            crashes=crashes_in_a_row(fresh, draft.status.crashes, checkpoint_since=checkpoint_since),
        )
    healed = False
    for incident in fresh:
        if incident.out_of_memory and not draft.terminal:
            healed = _heal(draft)
    # A pod that went because the user paused the job has not failed.
    paused = child.suspended or draft.wishes.suspend
    told = [incident for incident in known if incident.costly or not paused]
    news = bool(told) and _is_news(draft.status.last_failure, told[-1])
    if news and not draft.terminal:
        draft.update(last_failure=_explained(draft, told[-1].cause, healed=healed).to_status())
    return news or bool(fresh)


def _without_early(draft: Draft, child: ChildView, fresh: Sequence[Incident]) -> list[Incident]:
    """Of a pod that lost its peer, the peer's own failure may be told a moment later: it decides what the incident costs."""
    waiting = [incident for incident in fresh if child.parallelism > 1 and early(incident, draft.now)]
    for incident in waiting:
        draft.look_again_at(incident.failures[-1].at + PEER_LAG)
    return [incident for incident in fresh if incident not in waiting]


def _is_news(known: Failure | None, incident: Incident) -> bool:
    if known is None or known.at is None or incident.cause.at > known.at:
        return True
    # Told of a pod that lost its peer before the peer's own failure was seen.
    told_before = known.reason == Reason.PEER_LOST and any(f.peer_lost and f.at == known.at for f in incident.failures)
    return told_before and not incident.cause.peer_lost


def _heal(draft: Draft) -> bool:
    """A smaller micro-batch for the next attempt; where there is none, the job ends."""
    wishes, overrides = draft.wishes, draft.status.overrides
    now = overrides or Overrides(batch_size=wishes.batch_size, gradient_accumulation_steps=wishes.accumulation)
    smaller = halved(now.batch_size, now.gradient_accumulation_steps)
    if smaller is not None:
        draft.update(overrides=smaller)
        return True
    limit = next((pod.memory_limit for pod in draft.observed.pods if pod.memory_limit), None)
    peak = draft.status.peak_memory_bytes
    measured = f"the trainer had used up to {peak / _MIB:.0f} MiB" if peak else "how much the trainer had used is not known"
    allowed = f"the pod's limit is {limit}" if limit else "the pod has no limit of its own: the node ran out"
    message = (
        f"out of memory with a micro-batch of 1: {measured}, and {allowed}; "
        "raise spec.pods.resources.limits.memory, or lower data.maxLength, in a new job"
    )
    failure = Failure(category=Category.INFRASTRUCTURE, reason=Reason.OUT_OF_MEMORY, message=message, at=draft.now)
    endings.fail(draft, failure)
    return False


def _explained(draft: Draft, cause: PodFailure, *, healed: bool) -> PodFailure:
    smaller = draft.status.overrides
    if not healed or smaller is None or not cause.out_of_memory:
        return cause
    goes_on = (
        f"{cause.message}; the next attempt goes on with batchSize {smaller.batch_size} x gradientAccumulationSteps "
        f"{smaller.gradient_accumulation_steps}, the same effective batch"
    )
    return replace(cause, message=goes_on)
