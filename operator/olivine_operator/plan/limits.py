"""The limits in time that a user sets: of running, of waiting, and of what is kept after the end."""

from datetime import datetime, timedelta

from olivine_api.reasons import Reason
from olivine_api.status import ConditionType
from olivine_operator.plan import endings
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.outcome import DeleteChild
from olivine_operator.plan.usage import running_seconds

# Where an end that is under way goes before a deadline that has passed: no look after look until it is there.
_SOONEST_SECONDS = 1.0


def ended_by_deadline(draft: Draft) -> bool:
    """Ends a job that ran or waited for too long; returns whether it did."""
    limit = draft.wishes.active_deadline_seconds
    spent = running_seconds(draft.before, draft.observed.pods, draft.now)
    if limit is not None and spent >= limit:
        message = (
            f"spec.activeDeadlineSeconds is {limit}, and the job has been running for {spent} s, all attempts together; "
            "its checkpoints stay in the storage: a new job needs a longer deadline"
        )
        endings.fail_by_user(draft, Reason.DEADLINE_EXCEEDED, message)
        return True
    due = _queue_deadline(draft)
    if due is not None and draft.now >= due:
        message = (
            f"spec.queueDeadlineSeconds is {draft.wishes.queue_deadline_seconds}, and no pod has run by then: "
            "a new job needs a longer deadline, a smaller wish, or another queue"
        )
        endings.fail_by_user(draft, Reason.QUEUE_DEADLINE_EXCEEDED, message)
        return True
    return False


def watch_deadlines(draft: Draft) -> None:
    """Asks for a look when a deadline passes."""
    limit = draft.wishes.active_deadline_seconds
    if limit is not None and draft.holds(ConditionType.RUNNING):
        draft.look_again_in(max(_SOONEST_SECONDS, limit - running_seconds(draft.status, draft.observed.pods, draft.now)))
    due = _queue_deadline(draft)
    if due is not None:
        draft.look_again_in(max(_SOONEST_SECONDS, (due - draft.now).total_seconds()))


def _queue_deadline(draft: Draft) -> datetime | None:
    """When a job that never ran has waited for too long; time while suspended does not count."""
    seconds = draft.wishes.queue_deadline_seconds
    validated, suspended = draft.condition(ConditionType.VALIDATED), draft.condition(ConditionType.SUSPENDED)
    if seconds is None or draft.status.start_time is not None or validated is None or draft.wishes.suspend:
        return None
    if suspended is not None and suspended.status == "True":
        return None  # it was resumed just now
    since = [condition.last_transition_time for condition in (validated, suspended) if condition is not None]
    return max(since) + timedelta(seconds=seconds)


def retire(draft: Draft) -> bool:
    """Deletes what is left of an ended job's child when its time is over, never the job itself; returns whether it does."""
    child, seconds, ended = draft.observed.child, draft.wishes.ttl_seconds, draft.status.completion_time
    if child is None or child.deleting or seconds is None or ended is None:
        return False
    due = ended + timedelta(seconds=seconds)
    if draft.now < due:
        draft.look_again_in((due - draft.now).total_seconds())
        return False
    draft.act(DeleteChild(name=child.name, uid=child.uid, kind=child.kind))
    return True
