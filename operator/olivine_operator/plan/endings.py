"""The three ends of a job. Terminal is terminal: nothing leads back from here."""

from datetime import datetime, timedelta

from olivine_api.exit_codes import Category
from olivine_api.reasons import Reason
from olivine_api.status import ConditionType, Failure, FineTuneJobStatus
from olivine_operator.plan.conditions import find, truncate
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.outcome import DeleteChild, SuspendChild

# The Job controller ends the Job by itself where a pod's exit code says so; pods and their logs stay then.
_CHILD_ENDS_BY_ITSELF = timedelta(seconds=30)
# These it knows nothing of.
_ENDED_HERE = (
    Reason.TOO_MANY_RESTARTS,
    Reason.CRASH_LOOP,
    Reason.OUT_OF_MEMORY,
    Reason.DEADLINE_EXCEEDED,
    Reason.QUEUE_DEADLINE_EXCEEDED,
)


def fail(draft: Draft, failure: Failure, *, reason: str | None = None, message: str | None = None) -> None:
    """Ends the job as failed; reason and message of the condition default to the failure's."""
    if failure.reason == Reason.GATE_UNMET:
        draft.set(ConditionType.PUBLISHED, "False", Reason.GATE_UNMET, failure.message)
    draft.update(last_failure=failure.model_copy(update={"message": truncate(failure.message)}))
    _end_failed(draft, reason or failure.reason, message or failure.message)


def fail_by_user(draft: Draft, reason: str, message: str) -> None:
    """Ends the job because of something that the user has to change."""
    fail(draft, Failure(category=Category.USER, reason=reason, message=truncate(message), at=draft.now))


def cancel(draft: Draft) -> None:
    """Ends the job because its user wants so."""
    kept = "; its checkpoints stay in the storage" if draft.status.checkpoint is not None else ""
    _end_failed(draft, Reason.CANCELLED, f"cancelled by spec.cancel{kept}")


def succeed(draft: Draft) -> None:
    """Ends the job well."""
    status = draft.status
    if status.artifacts:
        where = "; ".join(f"{artifact.kind.lower()} at {artifact.uri}" for artifact in status.artifacts)
        draft.set(ConditionType.PUBLISHED, "True", Reason.PUBLISHED, where)
    else:
        # The Job is complete only after publishing, but nobody told where.
        where = f"the final report was lost; the artifacts lie below {status.storage_uri or 'the storage prefix'}/artifacts"
    _stop(draft)
    draft.set(ConditionType.COMPLETE, "True", Reason.COMPLETED, f"{_trained(status)}{where}")


def _trained(status: FineTuneJobStatus) -> str:
    """How long, and whether early stopping ended it: then the weights of the best evaluation are published."""
    progress = status.progress
    if progress is None:
        return ""
    # Only the final report names artifacts; without it the step is one on the way.
    early = status.artifacts and progress.total_steps is not None and progress.step < progress.total_steps
    if not early or status.best is None:
        return f"trained {progress.step} steps; "
    best = f"{status.best.metric} was best at step {status.best.step}, whose weights are published"
    return f"stopped early after {progress.step} of {progress.total_steps} steps: {best}; "


def _end_failed(draft: Draft, reason: str, message: str) -> None:
    _stop(draft)
    draft.set(ConditionType.FAILED, "True", reason, message)
    draft.set(ConditionType.STALLED, "True", reason, message)


def _stop(draft: Draft) -> None:
    draft.update(completion_time=draft.now, next_retry_time=None)
    if draft.condition(ConditionType.RUNNING) is not None:
        draft.set(ConditionType.RUNNING, "False", Reason.FINISHED, "the job has ended")
    if draft.holds(ConditionType.SUSPENDED):
        draft.set(ConditionType.SUSPENDED, "False", Reason.FINISHED, "the job has ended")


def end_child(draft: Draft) -> None:
    """Of an ended job no pod goes on: a failed one's Job is suspended, so that logs stay; a cancelled or queued one's deleted."""
    child = draft.observed.child
    failed = find(draft.status.conditions, ConditionType.FAILED)
    if child is None or child.finished or child.deleting or failed is None or failed.status != "True":
        return
    if failed.reason == Reason.CANCELLED:
        draft.act(DeleteChild(name=child.name, uid=child.uid, kind=child.kind))
        return
    if child.suspended and not child.queued:
        return
    patience = _patience(draft, failed.reason)
    if patience > draft.now:
        draft.look_again_at(patience)
    elif child.queued:
        # Kueue owns its suspend, and would let a suspended one run again.
        draft.act(DeleteChild(name=child.name, uid=child.uid, kind=child.kind))
    else:
        draft.act(SuspendChild(name=child.name, suspend=True, kind=child.kind))


def _patience(draft: Draft, reason: str) -> datetime:
    if reason in _ENDED_HERE or draft.status.completion_time is None:
        return draft.now
    return draft.status.completion_time + _CHILD_ENDS_BY_ITSELF
