"""One look at a FineTuneJob: from what is observed to what is to be written and done."""

from datetime import datetime, timedelta

from olivine_api.exit_codes import Category
from olivine_api.reasons import Reason
from olivine_api.status import Child, ConditionType, Failure, Resolved
from olivine_operator.plan import endings, limits
from olivine_operator.plan.child import build_child
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.incidents import RESTART_TIMES_LIMIT
from olivine_operator.plan.last_words import hear_out
from olivine_operator.plan.naming import child_name
from olivine_operator.plan.observed import KUEUE_QUEUE_LABEL, ChildView, Observed, Obstacle
from olivine_operator.plan.outcome import Plan
from olivine_operator.plan.pod import image_of
from olivine_operator.plan.queueing import tell_queued
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.plan.showing import show_queued, wait_for_pod
from olivine_operator.plan.training import follow_child
from olivine_operator.plan.validation import Refusal, validate

_OBSTACLE_RETRY_SECONDS = 15
# Why there is no child, without anybody's having taken it away.
_NO_INCIDENT = (
    Reason.SUSPENDED_BY_USER,
    Reason.NAME_TAKEN,
    Reason.CHILD_REFUSED,
    Reason.INVALID_SPEC,
    Reason.QUOTA_EXCEEDED,
    Reason.RESIZING,
)
_IN_THE_WAY = (Reason.NAME_TAKEN, Reason.CHILD_REFUSED, Reason.INVALID_SPEC, Reason.QUOTA_EXCEEDED, Reason.CHILD_LOST)
# A stage is news at once, but never more often than this.
_STAGE_SECONDS = 1.0


def plan(observed: Observed, now: datetime, settings: OperatorSettings) -> Plan:
    """What is to be done for a FineTuneJob as it is observed now."""
    if observed.job.deleting:
        return Plan()  # the garbage collector takes the children
    draft = Draft(observed, now, settings)
    if not draft.terminal:
        _follow(draft)
        _tell_progress(draft, now)
    if draft.terminal:
        hear_out(draft)
        if not limits.retire(draft):
            endings.end_child(draft)
    else:
        limits.watch_deadlines(draft)
    return draft.finish()


def _follow(draft: Draft) -> None:
    child = draft.observed.child
    # What is published before the cancellation is seen is published.
    if draft.wishes.cancel and (child is None or child.succeeded is None):
        endings.cancel(draft)
    elif child is None:
        _without_child(draft)
    elif child.deleting:
        _wait_for_deletion(draft, child)
    else:
        follow_child(draft, child)


def _wait_for_deletion(draft: Draft, child: ChildView) -> None:
    if limits.ended_by_deadline(draft):
        return
    running = draft.condition(ConditionType.RUNNING)
    if running is not None and running.reason == Reason.RESIZING:
        return  # it was our own doing
    gone = f"the {child.kind} {child.name} is being deleted; it is made again when it is gone"
    draft.set(ConditionType.RUNNING, "False", Reason.WAITING_FOR_CHILD, gone)


def _without_child(draft: Draft) -> None:
    """Accept the spec, and make the child unless the job is suspended or something is in the way."""
    job = draft.observed.job
    # A child that has to be made anew was allowed once: another policy since then ends no job.
    spec = validate(job.spec, draft.settings.policy if draft.status.child is None else None)
    if isinstance(spec, Refusal):
        draft.set(ConditionType.VALIDATED, "False", spec.reason, spec.message)
        endings.fail_by_user(draft, spec.reason, spec.message)
        return
    draft.set(ConditionType.VALIDATED, "True", Reason.ACCEPTED, "the specification is valid")
    if draft.wishes.suspend:
        message = "spec.suspend is true: the job starts when it is false"
        draft.set(ConditionType.RUNNING, "False", Reason.SUSPENDED_BY_USER, "the job is suspended")
        draft.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED_BY_USER, message)
        return
    if draft.holds(ConditionType.SUSPENDED):
        draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED, "resumed")
    if draft.observed.obstacle is not None:
        _tell_obstacle(draft, draft.observed.obstacle)
        return
    if limits.ended_by_deadline(draft):
        return
    _recount_lost_child(draft)
    made = build_child(
        job,
        spec,
        draft.observed.ca_certificate,
        draft.settings,
        overrides=draft.status.overrides,
        jobsets=draft.observed.serves_jobsets,
    )
    # Written down before it is made: from then on the API server keeps the spec as it is.
    draft.update(
        child=Child(kind=made.job["kind"], name=child_name(job)),
        resolved=(draft.status.resolved or Resolved()).model_copy(update={"image": image_of(spec.pods, draft.settings)}),
    )
    running = draft.condition(ConditionType.RUNNING)
    if KUEUE_QUEUE_LABEL in job.labels:
        tell_queued(draft)
        show_queued(draft)
    # What stood in the way is told until the child is there, or the two states would alternate with each try.
    elif running is None or running.reason not in _IN_THE_WAY:
        wait_for_pod(draft)
    draft.act(made)


def _tell_obstacle(draft: Draft, obstacle: Obstacle) -> None:
    # Of a job that ran, its user can correct what may change while it is suspended.
    if obstacle.permanent and draft.status.start_time is None:
        endings.fail_by_user(draft, obstacle.reason, obstacle.message)
        return
    draft.set(ConditionType.RUNNING, "False", obstacle.reason, obstacle.message)
    draft.look_again_in(_OBSTACLE_RETRY_SECONDS)


def _recount_lost_child(draft: Draft) -> None:
    """A Job that ran and was deleted by other hands is one incident: somebody who keeps deleting it ends the job."""
    status, running = draft.status, draft.condition(ConditionType.RUNNING)
    if status.start_time is None or status.child is None or (running is not None and running.reason == Reason.CHILD_LOST):
        return
    if running is not None and running.reason in _NO_INCIDENT:
        return
    message = f"the {status.child.kind} {status.child.name} was deleted by other hands; it is made again, and resumes from the last checkpoint"
    failure = Failure(category=Category.INFRASTRUCTURE, reason=Reason.CHILD_LOST, message=message, at=draft.now)
    draft.update(
        restarts=status.restarts + 1,
        restart_times=[*status.restart_times, draft.now][-RESTART_TIMES_LIMIT:],
        last_failure=failure,
    )
    draft.set(ConditionType.RUNNING, "False", Reason.CHILD_LOST, message)


def _tell_progress(draft: Draft, now: datetime) -> None:
    """Takes the trainer's report over: with whatever else is written, else at most once an interval."""
    report = draft.observed.report
    if report is None or draft.terminal:
        return
    held_back, stage_before = draft.status, draft.status.progress.stage if draft.status.progress else None
    other_news = draft.changed
    draft.merge(report.snapshot)
    if draft.status == held_back or other_news:
        return
    stage = draft.status.progress.stage if draft.status.progress else None
    interval = _STAGE_SECONDS if stage != stage_before else draft.settings.status_interval_seconds
    written_at = draft.observed.written_at
    due = written_at + timedelta(seconds=interval) if written_at is not None else now
    if due > now:
        draft.status = held_back
        draft.look_again_in((due - now).total_seconds())
