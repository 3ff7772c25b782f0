"""A job whose child exists: what the child and its pods say becomes conditions, incidents and ends."""

from datetime import timedelta

from pydantic import ValidationError

from olivine_api.exit_codes import Category
from olivine_api.finetunejob import parse_spec
from olivine_api.reasons import Reason
from olivine_api.status import Failure, World
from olivine_operator.plan import endings, failures, incidents
from olivine_operator.plan.child import build_config_map, build_service
from olivine_operator.plan.counting import count_incidents
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.failures import PodFailure
from olivine_operator.plan.last_words import hear_last_words
from olivine_operator.plan.limits import ended_by_deadline
from olivine_operator.plan.live_config import digest_of, live_data
from olivine_operator.plan.observed import ChildView
from olivine_operator.plan.outcome import KeepConfigMap, KeepService, SuspendChild, WriteConfig
from olivine_operator.plan.queueing import follow_queue, suspended_by_user
from olivine_operator.plan.resizing import keep_size
from olivine_operator.plan.showing import show_pods, show_queued, show_resuming, show_suspended
from olivine_operator.plan.waiting import SLOW_START, is_slow

# A Job's end and its pod's come by different watches: the pod, which knows why, may come a little later.
_POD_LAG = timedelta(seconds=10)


def follow_child(draft: Draft, child: ChildView) -> None:
    """One look at the child and its pods."""
    failed = failures.failures_of(draft.observed.pods)
    checkpoint_since = hear_last_words(draft, complete=child.succeeded is not None)

    # Ends come first: whatever else is seen does not matter any more.
    by_user = next((f for f in failed if f.category is Category.USER), None)
    if by_user is not None:
        endings.fail(draft, by_user.to_status())
        return
    if child.succeeded is not None:
        _complete(draft, child)
        return
    if child.condition("Failed") is not None:
        _child_failed(draft, child)
        return
    news = count_incidents(draft, child, failed, checkpoint_since=checkpoint_since)
    if draft.terminal or _overrun(draft) or _crash_loop(draft) or ended_by_deadline(draft):
        return

    if news and child.kind == "Job" and draft.wishes.pods > 1:
        # Pods that do not find each other may lack the Service that somebody deleted.
        draft.act(KeepService(service=build_service(draft.observed.job)))
    _keep_config_map(draft)
    _keep_config(draft, child)
    sized = keep_size(draft, child)
    if child.queued:
        follow_queue(draft, child)
    else:
        _suspend_or_resume(draft, child, sized=sized)
    _show(draft, child, failed, news=news, sized=sized)


def _suspend_or_resume(draft: Draft, child: ChildView, *, sized: bool) -> None:
    """What has another size than it should is resumed when it has that."""
    suspend = draft.wishes.suspend or not sized
    if child.suspended != suspend:
        draft.act(SuspendChild(name=child.name, suspend=suspend, kind=child.kind))


def _show(draft: Draft, child: ChildView, failed: tuple[PodFailure, ...], *, news: bool, sized: bool) -> None:
    if not child.suspended:
        show_pods(draft, child, failed, news=news)
    elif child.queued and not suspended_by_user(draft, child):
        show_queued(draft)
    elif child.queued or draft.wishes.suspend:
        show_suspended(draft, sized=sized)
    else:
        show_resuming(draft, sized=sized)


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
    if observed.child is not None:
        draft.act(KeepConfigMap(config_map=build_config_map(observed.job, spec, _live(draft, observed.child))))


def _keep_config(draft: Draft, child: ChildView) -> None:
    """Pods must know how many they are, what was healed, and the operator that is there now, not the one that made their child."""
    live = _live(draft, child)
    if draft.observed.ca_certificate and child.config_digest != digest_of(live):
        draft.act(WriteConfig(name=child.name, data=live, digest=digest_of(live), kind=child.kind))


def _live(draft: Draft, child: ChildView) -> dict[str, str]:
    world = World(pods=child.parallelism, processes_per_pod=draft.wishes.processes_per_pod)
    return live_data(ca_certificate=draft.observed.ca_certificate, world=world, overrides=draft.status.overrides)


def _complete(draft: Draft, child: ChildView) -> None:
    ended = child.succeeded
    succeeded = any(pod.phase == "Succeeded" and pod.index == 0 for pod in draft.observed.pods)
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
    # A JobSet says only that its Job failed, which it does by policy alone.
    by_policy = ended.reason == "PodFailurePolicy" or child.kind == "JobSet"
    if by_policy and ended.since is not None and draft.now < ended.since + _POD_LAG:
        draft.look_again_in(1)
        return
    category = Category.USER if by_policy else Category.INFRASTRUCTURE
    message = f"the {child.kind} {child.name} failed: {ended.message}"
    endings.fail(draft, Failure(category=category, reason=ended.reason or Reason.POD_FAILED, message=message, at=draft.now))


def _overrun(draft: Draft) -> bool:
    status, limit, window = draft.status, draft.wishes.retries.max_restarts, draft.wishes.retries.window_seconds
    if not incidents.too_many(status.restart_times, status.restarts, max_restarts=limit, window_seconds=window, now=draft.now):
        return False
    last = status.last_failure
    if last is None:
        last = Failure(category=Category.INFRASTRUCTURE, reason=Reason.CHILD_LOST, message="its child was deleted", at=draft.now)
    allowed = f"retries.maxRestarts is {limit} within {window} s, and this was one more"
    endings.fail(draft, last, reason=Reason.TOO_MANY_RESTARTS, message=f"{allowed}: {last.message}")
    return True


def _crash_loop(draft: Draft) -> bool:
    """The Job controller's back-off leaves only about six incidents an hour: the window alone would let a job crash for ever."""
    crashes, last = draft.status.crashes, draft.status.last_failure
    if crashes <= incidents.CRASHES_ALLOWED or last is None:
        return False
    message = f"the trainer failed {crashes} times in a row without a new checkpoint: {last.message}"
    endings.fail(draft, last, reason=Reason.CRASH_LOOP, message=message)
    return True
