"""A job whose child exists: what its Job and pods say becomes conditions, incidents and ends."""

from datetime import datetime, timedelta

from pydantic import ValidationError

from olivine_api.exit_codes import Category
from olivine_api.finetunejob import Retries, parse_spec
from olivine_api.reasons import Reason
from olivine_api.status import ConditionType, Failure
from olivine_operator.plan import endings, failures
from olivine_operator.plan.child import build_config_map, ca_digest
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.failures import PodFailure
from olivine_operator.plan.observed import ChildView
from olivine_operator.plan.outcome import KeepConfigMap, RefreshCa, SuspendChild
from olivine_operator.plan.showing import show_pods, show_resuming
from olivine_operator.plan.snapshots import bounded
from olivine_operator.plan.waiting import SLOW_START, is_slow

# A Job's end and its pod's come by different watches: the pod, which knows why, may come a little later.
_POD_LAG = timedelta(seconds=10)


def follow_child(draft: Draft, child: ChildView, *, suspend: bool, retries: Retries) -> None:
    """One look at the Job and its pods."""
    failed = failures.failures_of(draft.observed.pods)
    checkpoint_since = _hear_last_words(draft, complete=child.condition("Complete") is not None)

    # Ends come first: whatever else is seen does not matter any more.
    by_user = next((f for f in failed if f.category is Category.USER), None)
    if by_user is not None:
        endings.fail(draft, by_user.to_status())
        return
    if child.condition("Complete") is not None:
        _complete(draft, child)
        return
    if child.condition("Failed") is not None:
        _child_failed(draft, child)
        return
    # Kueue owns the suspension of a queued Job.
    paused = child.suspended or (suspend and not child.queued)
    news = _count_incidents(draft, failed, paused=paused, checkpoint_since=checkpoint_since)
    if _overrun(draft, failed, retries) or _crash_loop(draft):
        endings.end_child(draft)
        return

    _keep_config_map(draft)
    _keep_ca(draft, child)
    if child.suspended != suspend and not child.queued:
        draft.act(SuspendChild(name=child.name, suspend=suspend))
    if not child.suspended:
        show_pods(draft, child, failed, news=news)
    elif suspend or child.queued:
        _show_suspended(draft, kueue=child.queued)
    else:
        show_resuming(draft)
    if child.queued:
        _tell_left_to_kueue(draft, suspend=suspend)


def _keep_config_map(draft: Draft) -> None:
    """A pod that waits for its volumes may wait for a ConfigMap that somebody deleted."""
    observed = draft.observed
    if not any(pod.active and is_slow(pod, draft.now) for pod in observed.pods):
        return
    try:
        spec = parse_spec(dict(observed.job.spec))
    except ValidationError:
        return  # stored by another release
    draft.look_again_in(SLOW_START.total_seconds())
    draft.act(KeepConfigMap(config_map=build_config_map(observed.job, spec, observed.ca_certificate)))


def _keep_ca(draft: Draft, child: ChildView) -> None:
    """Pods must trust the operator that is there now, not the one that made their Job."""
    certificate = draft.observed.ca_certificate
    if certificate and child.ca_digest != ca_digest(certificate):
        draft.act(RefreshCa(name=child.name, certificate=certificate, digest=ca_digest(certificate)))


def _hear_last_words(draft: Draft, *, complete: bool) -> datetime | None:
    """Termination messages carry the last snapshot: what an operator that was away has missed.

    Returns the end of the last pod that told of a new checkpoint.
    """
    checkpoint_since: datetime | None = None
    for pod in sorted(draft.observed.pods, key=lambda p: p.created):
        if pod.phase == "Succeeded" and not complete:
            continue  # the Job completes in a moment: one write for both
        told = failures.termination_message(pod)
        if told is not None and told.snapshot is not None and pod.termination is not None:
            heard_at, known = pod.termination.at or draft.now, draft.checkpoint_step
            draft.merge(bounded(told.snapshot, heard_at), final=pod.phase == "Succeeded")
            if draft.checkpoint_step > known:
                checkpoint_since = heard_at
    return checkpoint_since


def _complete(draft: Draft, child: ChildView) -> None:
    ended = child.condition("Complete")
    succeeded = any(pod.phase == "Succeeded" for pod in draft.observed.pods)
    if not succeeded and ended is not None and ended.since is not None and draft.now < ended.since + _POD_LAG:
        draft.look_again_in(1)
        return
    # The pod's last words win: an earlier report of the same second must not take them back.
    if draft.observed.report is not None and not draft.status.artifacts:
        draft.merge(draft.observed.report.snapshot)
    endings.succeed(draft)


def _child_failed(draft: Draft, child: ChildView) -> None:
    ended = child.condition("Failed")
    if ended is None:
        return
    by_policy = ended.reason == "PodFailurePolicy"
    if by_policy and ended.since is not None and draft.now < ended.since + _POD_LAG:
        draft.look_again_in(1)
        return
    category = Category.USER if by_policy else Category.INFRASTRUCTURE
    message = f"the Job {child.name} failed: {ended.message}"
    endings.fail(draft, Failure(category=category, reason=ended.reason or Reason.POD_FAILED, message=message[:1024], at=draft.now))


def _count_incidents(draft: Draft, failed: tuple[PodFailure, ...], *, paused: bool, checkpoint_since: datetime | None) -> bool:
    """Counts what was not counted yet; returns whether the last failure is news."""
    incidents = failures.new_incidents(failed, draft.status.restart_times)
    if incidents:
        times = sorted([*draft.status.restart_times, *(incident.at for incident in incidents)])
        draft.update(
            restarts=draft.status.restarts + len(incidents),
            restart_times=times[-failures.RESTART_TIMES_LIMIT :],
            crashes=failures.crashes_in_a_row(incidents, draft.status.crashes, checkpoint_since=checkpoint_since),
        )
    # A pod that went because the user paused the job has not failed.
    told = [f for f in failed if f.costs_retry or not paused]
    known = draft.status.last_failure
    if told and (known is None or known.at is None or told[-1].at > known.at):
        draft.update(last_failure=told[-1].to_status())
        return True
    return bool(incidents)


def _overrun(draft: Draft, failed: tuple[PodFailure, ...], retries: Retries) -> bool:
    status, limit, window = draft.status, retries.max_restarts, retries.window_seconds
    if not failures.too_many(status.restart_times, status.restarts, max_restarts=limit, window_seconds=window, now=draft.now):
        return False
    costly = [f for f in failed if f.costs_retry]
    last = costly[-1].to_status() if costly else status.last_failure
    if last is None:
        last = Failure(category=Category.INFRASTRUCTURE, reason=Reason.CHILD_LOST, message="the Job was deleted", at=draft.now)
    allowed = f"retries.maxRestarts is {limit} within {window} s, and this was one more"
    endings.fail(draft, last, reason=Reason.TOO_MANY_RESTARTS, message=f"{allowed}: {last.message}")
    return True


def _crash_loop(draft: Draft) -> bool:
    """The Job controller's back-off leaves only about six incidents an hour: the window alone would let a job crash for ever."""
    crashes, last = draft.status.crashes, draft.status.last_failure
    if crashes <= failures.CRASHES_ALLOWED or last is None:
        return False
    message = f"the trainer failed {crashes} times in a row without a new checkpoint: {last.message}"
    endings.fail(draft, last, reason=Reason.CRASH_LOOP, message=message)
    return True


def _tell_left_to_kueue(draft: Draft, *, suspend: bool) -> None:
    known = draft.condition(ConditionType.SUSPENDED)
    if suspend:
        message = (
            "spec.suspend has no effect here: this release leaves the suspension of queued jobs to Kueue; "
            "set spec.active of the job's Workload to false instead"
        )
        draft.set(ConditionType.SUSPENDED, "False", Reason.LEFT_TO_KUEUE, message)
    elif known is not None and known.reason == Reason.LEFT_TO_KUEUE:
        draft.set(ConditionType.SUSPENDED, "False", Reason.NOT_SUSPENDED, "the job is not suspended")


def _show_suspended(draft: Draft, *, kueue: bool) -> None:
    draft.update(next_retry_time=None)
    if kueue:
        draft.set(ConditionType.RUNNING, "False", Reason.WAITING_FOR_CHILD, "waits until Kueue admits it")
        return
    leaving = [pod for pod in draft.observed.pods if pod.phase not in ("Succeeded", "Failed")]
    if leaving:
        message = f"spec.suspend is true: pod {leaving[0].name} saves a checkpoint and goes"
    else:
        message = "spec.suspend is true: no pod runs; false resumes from the last checkpoint"
        draft.set(ConditionType.RUNNING, "False", Reason.SUSPENDED_BY_USER, "the job is suspended")
    draft.set(ConditionType.SUSPENDED, "True", Reason.SUSPENDED_BY_USER, message)
