"""A build whose Job is to be there: what the Job and its pods say becomes conditions, incidents, and a version."""

from datetime import timedelta

from olivine_api.adapterbundle import BuildStatus
from olivine_api.adapterbundle import BundleConditionType as Type
from olivine_api.bundle_build import BuildResult, BuildSnapshot, BuildTermination
from olivine_api.exit_codes import Category
from olivine_api.reasons import Reason
from olivine_api.status import Failure
from olivine_operator.plan import failures, incidents
from olivine_operator.plan.bundle.build import live_config
from olivine_operator.plan.bundle.draft import BundleDraft
from olivine_operator.plan.bundle.gathering import Gathered
from olivine_operator.plan.bundle.showing import show_build
from olivine_operator.plan.bundle.telling import in_bytes, merged
from olivine_operator.plan.failures import PodFailure
from olivine_operator.plan.live_config import digest_of
from olivine_operator.plan.observed import ChildView
from olivine_operator.plan.outcome import DeleteChild, SuspendChild, WriteConfig

# A Job's end and its pod's come by different watches.
_POD_LAG = timedelta(seconds=10)
_JOB_ENDS_BY_ITSELF = timedelta(seconds=30)


def follow_build(draft: BundleDraft, build: BuildStatus, child: ChildView, gathered: Gathered, inputs: str) -> bool:
    """One look at the Job of the newest build; returns whether its result is lost, and is to be fetched by another build.

    `inputs` is the digest of what is wanted now.
    """
    pods = draft.observed.pods
    failed = failures.failures_of(pods)
    snapshot = _newest_snapshot(draft, build)
    by_user = next((one for one in failed if one.category is Category.USER), None)
    if by_user is not None:
        if snapshot is not None and snapshot.result is not None:
            _take_adapters(draft, snapshot.result, gathered)
        draft.fail_build(by_user.to_status())
        return False
    if child.succeeded is not None:
        names = {one.name for one in gathered.built_in} if build.digest == inputs else set[str]()
        return _complete(draft, build, child, snapshot, gathered=gathered, names=names)
    if child.condition("Failed") is not None:
        _child_failed(draft, child)
        return False
    _count(draft, failed)
    if _overrun(draft, failed) or _late(draft):
        return False
    if draft.observed.ca_certificate and child.config_digest != digest_of(live := live_config(draft.observed.ca_certificate)):
        draft.act(WriteConfig(name=child.name, data=live, digest=digest_of(live)))
    if snapshot is not None:
        # About eight times: a write for each adapter would say little more.
        shown = snapshot.verified - snapshot.verified % max(1, snapshot.total // 8)
        draft.update_build(stage=snapshot.stage, verified=shown)
    show_build(draft, child, failed, snapshot)
    return False


def _newest_snapshot(draft: BundleDraft, build: BuildStatus) -> BuildSnapshot | None:
    """What this build's pod told last: by its report, which is whole, else by its termination message."""
    report = draft.observed.report
    found = report.snapshot if report is not None and report.snapshot.sequence == build.sequence else None
    if found is not None and found.result is not None:
        return found
    for pod in sorted(draft.observed.pods, key=lambda one: (one.created, one.name), reverse=True):
        if pod.termination is None or not pod.termination.message:
            continue
        try:
            told = BuildTermination.model_validate_json(pod.termination.message).build
        except ValueError:
            continue  # it left nothing that can be read: failures.py tells of it
        if told is not None and told.sequence == build.sequence and told.result is not None:
            return told
    return found


def _complete(
    draft: BundleDraft,
    build: BuildStatus,
    child: ChildView,
    snapshot: BuildSnapshot | None,
    *,
    gathered: Gathered,
    names: set[str],
) -> bool:
    """`names`: of the adapters that the result tells of, where that is known."""
    result = snapshot.result if snapshot is not None else None
    told = result.bundle is not None if result is not None else False
    # A termination message has no room for many.
    if result is None or not told or not names <= {one.name for one in result.adapters}:
        ended = child.succeeded
        if ended is not None and ended.since is not None and draft.now < ended.since + _POD_LAG:
            draft.look_again_in(1)
            return False
        if (build.repeats or 0) < incidents.CRASHES_ALLOWED:
            return True
    if result is None or not told:
        message = (
            f"the Job {child.name} completed, as those before it, and told of no version: its pods cannot reach the operator,"
            " or spec.pods.image is no trainer of this release"
        )
        at = draft.now
        draft.fail_build(Failure(category=Category.INFRASTRUCTURE, reason=Reason.CRASH_LOOP, message=message, at=at))
        return False
    _take_adapters(draft, result, gathered)
    bundle = result.bundle
    draft.update(bundle=bundle, base=result.base or draft.status.base, next_retry_time=None, last_failure=None)
    draft.update_build(finished_at=draft.now, failed=False, stage=None)
    _tell_version(draft, result)
    return False


def _take_adapters(draft: BundleDraft, result: BuildResult, gathered: Gathered) -> None:
    built_in = {one.name: one for one in gathered.built_in}
    version = result.bundle.version if result.bundle is not None else 0
    adapters = merged(result.adapters, built_in, version)
    if result.bundle is None:
        # What the version that is served has stays known: its numbers, and where its adapters came from.
        served = {one.name: one for one in draft.status.adapters if one.version is not None}
        adapters = [
            served[one.name].model_copy(update={"state": one.state, "reason": one.reason}) if one.name in served else one
            for one in adapters
        ]
        told = {one.name for one in adapters}
        adapters += [one for name, one in served.items() if name not in told]
    draft.update(adapters=adapters)


def _tell_version(draft: BundleDraft, result: BuildResult) -> None:
    bundle = result.bundle
    if bundle is None:
        return
    ready = [one for one in result.adapters if one.state == "Ready"]
    rejected = len(result.adapters) - len(ready)
    aside = f", {rejected} rejected" if rejected else ""
    message = f"version {bundle.version} with {len(ready)} adapters{aside} ({in_bytes(bundle.total_bytes)}) at {bundle.uri}"
    message += "; the base of an earlier version was taken as it lay there" if result.base_reused else ""
    draft.set(Type.BUILT, "True", Reason.PUBLISHED, message)
    draft.set(Type.READY, "True", Reason.PUBLISHED, message)
    draft.set(Type.RECONCILING, "False", Reason.FINISHED, "the newest adapters are built in")
    draft.set(Type.STALLED, "False", Reason.FINISHED, "the newest adapters are built in")
    if result.not_verified is not None:
        draft.set(Type.VERIFIED, "False", Reason.NOT_VERIFIED, result.not_verified)
        return
    worst = max((one.max_logit_difference or 0.0 for one in ready), default=0.0)
    proven = f"{len(ready)} adapters equal PyTorch within {worst:.2g} in every logit of the fp32 build, and the shipped one is within verify.maxExtraKL"
    draft.set(Type.VERIFIED, "True", Reason.VERIFIED, proven)


def _child_failed(draft: BundleDraft, child: ChildView) -> None:
    ended = child.condition("Failed")
    if ended is None:
        return
    if ended.reason == "PodFailurePolicy" and ended.since is not None and draft.now < ended.since + _POD_LAG:
        draft.look_again_in(1)
        return
    message = f"the Job {child.name} failed: {ended.message}"
    category = Category.USER if ended.reason == "PodFailurePolicy" else Category.INFRASTRUCTURE
    draft.fail_build(Failure(category=category, reason=ended.reason or Reason.POD_FAILED, message=message, at=draft.now))


def _count(draft: BundleDraft, failed: tuple[PodFailure, ...]) -> None:
    """Counts what was not counted yet."""
    known = incidents.incidents_of(failed)
    fresh = incidents.new_incidents(known, draft.status.restart_times)
    if fresh:
        times = sorted([*draft.status.restart_times, *(incident.at for incident in fresh)])
        draft.update(restarts=draft.status.restarts + len(fresh), restart_times=times[-incidents.RESTART_TIMES_LIMIT :])
    if failed:
        draft.update(last_failure=failed[-1].to_status())


def _overrun(draft: BundleDraft, failed: tuple[PodFailure, ...]) -> bool:
    retries, status, last = draft.wishes.retries, draft.status, draft.status.last_failure
    if last is None:
        return False
    limit, window = retries.max_restarts, retries.window_seconds
    if incidents.too_many(status.restart_times, status.restarts, max_restarts=limit, window_seconds=window, now=draft.now):
        message = f"retries.maxRestarts is {limit} within {window} s, and this was one more: {last.message}"
        draft.fail_build(last, reason=Reason.TOO_MANY_RESTARTS, message=message)
    elif (out := sum(one.out_of_memory for one in failed)) > incidents.CRASHES_ALLOWED:
        message = f"out of memory {out} times: raise spec.pods.resources.limits.memory; {last.message}"
        draft.fail_build(last, reason=Reason.OUT_OF_MEMORY, message=message)
    elif (crashes := sum(one.crash for one in incidents.incidents_of(failed))) > incidents.CRASHES_ALLOWED:
        message = f"the builder failed {crashes} times in a row: {last.message}"
        draft.fail_build(last, reason=Reason.CRASH_LOOP, message=message)
    else:
        return False
    return True


def _late(draft: BundleDraft) -> bool:
    """Ends a build that ran for too long, all its pods together."""
    limit = draft.wishes.active_deadline_seconds
    if limit is None:
        return False
    spent = 0.0
    for pod in draft.observed.pods:
        end = pod.termination.at if pod.termination is not None and pod.termination.at is not None else draft.now
        spent += max(0.0, (end - pod.started_at).total_seconds()) if pod.started_at is not None else 0.0
    if spent < limit:
        if any(pod.running for pod in draft.observed.pods):
            draft.look_again_in(max(1.0, limit - spent))
        return False
    draft.fail_build_by_user(
        Reason.DEADLINE_EXCEEDED,
        f"spec.activeDeadlineSeconds is {limit}, and this build has been running for {int(spent)} s, all its pods together:"
        " allow more; what it has uploaded is not made again",
    )
    return True


def end_failed(draft: BundleDraft) -> None:
    """At each look: of a build that has failed no pod goes on; logs stay, unless Kueue would let it run again."""
    build, last = draft.build, draft.status.last_failure
    child = next((one for one in draft.observed.children if build is not None and one.name == build.job), None)
    if build is None or not build.failed or build.finished_at is None or child is None or child.deleting or child.finished:
        return
    if child.suspended and not child.queued:
        return
    # The Job controller ends a Job by itself where a pod's exit code says so.
    by_itself = last is not None and last.category is Category.USER and last.reason != Reason.DEADLINE_EXCEEDED
    if by_itself and draft.now < build.finished_at + _JOB_ENDS_BY_ITSELF:
        draft.look_again_at(build.finished_at + _JOB_ENDS_BY_ITSELF)
    elif child.queued:
        draft.act(DeleteChild(name=child.name, uid=child.uid))
    else:
        draft.act(SuspendChild(name=child.name, suspend=True))
