"""One look at an AdapterBundle: from what is observed to what is to be written and done."""

from datetime import datetime, timedelta

from olivine_api.adapterbundle import ADAPTER_LIMIT, AdapterBundleSpec, BuildStatus
from olivine_api.adapterbundle import BundleConditionType as Type
from olivine_api.bundle_build import BundleBuild
from olivine_api.reasons import Reason
from olivine_operator.plan.bundle.build import build_job, inputs_digest, job_name, means_digest, task_of
from olivine_operator.plan.bundle.draft import BundleDraft
from olivine_operator.plan.bundle.following import end_failed, follow_build
from olivine_operator.plan.bundle.gathering import Gathered, gather, within
from olivine_operator.plan.bundle.observed import BundlePlan, ObservedBundle
from olivine_operator.plan.bundle.telling import tell_adapters
from olivine_operator.plan.observed import ChildView
from olivine_operator.plan.outcome import DeleteChild
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.plan.validation import Refusal, validate_bundle

_OBSTACLE_RETRY_SECONDS = 15
_PAUSED = (Reason.SUSPENDED_BY_USER, Reason.WAITING_FOR_CHILD, Reason.WAITING_FOR_JOBS, Reason.NO_ADAPTERS)
_SHOWN = 3  # adapters that a message names


def plan_bundle(observed: ObservedBundle, now: datetime, settings: OperatorSettings) -> BundlePlan:
    """What is to be done for an AdapterBundle as it is observed now."""
    if observed.bundle.deleting:
        return BundlePlan()  # the garbage collector takes the Jobs; what is published stays
    draft = BundleDraft(observed, now, settings)
    spec = validate_bundle(observed.bundle.spec, settings.policy)
    if isinstance(spec, Refusal):
        _pause(draft)  # nobody would follow it, or end it
        end_failed(draft)
        draft.stall(spec.reason, spec.message)
        return draft.finish()
    gathered = within(gather(spec, observed.jobs, draft.status), settings.policy)
    inputs = inputs_digest(spec, gathered)
    _remove_old_jobs(draft)
    if spec.suspend:
        _suspend(draft)
    elif draft.build is not None and draft.is_building and (_may_finish(draft, inputs) or not _is_due(draft, spec, inputs)):
        _go_on(draft, spec, gathered, draft.build, inputs)
    elif _is_due(draft, spec, inputs):
        _begin(draft, spec, gathered)
    else:
        _settle(draft, spec, gathered, inputs)
    end_failed(draft)
    tell_adapters(draft, spec, gathered, inputs)
    if draft.ended_now:
        draft.look_again_in(0)  # other adapters may be there by now: nobody else will tell
    return draft.finish()


def _may_finish(draft: BundleDraft, inputs: str) -> bool:
    """Whether a build is of what is wanted, or runs well: jobs that end one after another must not keep each version from being made."""
    build = draft.build
    if build is None or build.digest == inputs:
        return build is not None
    same_spec = build.generation == draft.observed.bundle.generation
    return same_spec and build.started_at is not None and draft.status.restarts == 0


def _is_due(draft: BundleDraft, spec: AdapterBundleSpec, inputs: str) -> bool:
    """Whether the newest build, done or under way, is of other inputs, and a new one is wanted for them."""
    build, bundle = draft.build, draft.observed.bundle
    if build is None:
        return True
    asked = bundle.update is not None and bundle.update != build.update
    if build.failed and (asked or build.generation != bundle.generation):
        return True  # the same once more: with what its pod lacked, maybe
    if build.digest == inputs:
        return False
    return asked or spec.update_policy == "OnChange" or build.generation != bundle.generation


def _begin(draft: BundleDraft, spec: AdapterBundleSpec, gathered: Gathered, *, repeats: int | None = None) -> None:
    """Start a build, unless something is waited for; then none of other inputs goes on either."""
    waiting = [one.name for one in gathered.candidates if one.state == "Waiting" and one.named]
    task = task_of(spec, gathered, draft.build.sequence + 1 if draft.build is not None else 1)
    if draft.status.bundle is None and waiting:
        _pause(draft)
        named = ", ".join(waiting[:_SHOWN]) + (f" and {len(waiting) - _SHOWN} more" if len(waiting) > _SHOWN else "")
        draft.go_on(Reason.WAITING_FOR_JOBS, f"the first version waits for the FineTuneJobs of {named}")
    elif not gathered.built_in:
        _pause(draft)
        _tell_no_adapters(draft, gathered)
    elif task is None:
        _pause(draft)
        message = "no FineTuneJob tells the base of these adapters any more: name it in spec.model"
        draft.stall(Reason.INVALID_SPEC, message)
    else:
        _write_down(draft, spec, gathered, task, repeats)


def _tell_no_adapters(draft: BundleDraft, gathered: Gathered) -> None:
    rejected = [one for one in gathered.candidates if one.state == "Rejected"]
    if rejected:
        said = "; ".join(f"{one.name}: {one.reason}" for one in rejected[:_SHOWN])
        draft.stall(Reason.ADAPTERS_REJECTED, f"no adapter is left: {said}")
    elif draft.status.bundle is not None:
        # As with others that are waited for: what is served does not change meanwhile.
        left = f"no adapter is left; version {draft.status.bundle.version} stays until a FineTuneJob that spec.selector matches succeeds"
        draft.set(Type.BUILT, "False", Reason.NO_ADAPTERS, left)
        if draft.condition(Type.STALLED) is not None:
            draft.set(Type.STALLED, "False", Reason.NO_ADAPTERS, left)
        draft.rest(Reason.NO_ADAPTERS, left)
    else:
        draft.go_on(
            Reason.NO_ADAPTERS, "no FineTuneJob that spec.selector matches has succeeded yet: the first that does begins a build"
        )


def _write_down(draft: BundleDraft, spec: AdapterBundleSpec, gathered: Gathered, task: BundleBuild, repeats: int | None) -> None:
    """Write the build down, and make its Job."""
    bundle, obstacle = draft.observed.bundle, draft.observed.obstacle
    name = job_name(bundle, task.sequence)
    for child in draft.observed.children:
        if child.name != name and not child.deleting:
            draft.act(DeleteChild(name=child.name, uid=child.uid))
    draft.update(
        build=BuildStatus(
            sequence=task.sequence,
            digest=task.digest,
            generation=bundle.generation,
            job=name,
            update=bundle.update,
            repeats=repeats,
        ),
        restarts=0,
        restart_times=[],
        next_retry_time=None,
    )
    if obstacle is None:
        draft.go_on(Reason.WAITING_FOR_POD, f"build {task.sequence} of {len(task.adapters)} adapters is being started")
    _make_job(draft, spec, gathered, task)


def _go_on(draft: BundleDraft, spec: AdapterBundleSpec, gathered: Gathered, build: BuildStatus, inputs: str) -> None:
    child = _job_of(draft, build)
    if child is not None and child.deleting:
        draft.go_on(Reason.WAITING_FOR_CHILD, f"the Job {child.name} is being deleted; it is made again when it is gone")
        return
    if child is not None and _is_outdated(draft, spec, build, child):
        draft.act(DeleteChild(name=child.name, uid=child.uid))
        draft.update(restarts=0, restart_times=[], next_retry_time=None)
        draft.go_on(Reason.WAITING_FOR_CHILD, f"the spec gives the builder pod something else: the Job {child.name} is made again")
        return
    if child is not None:
        if follow_build(draft, build, child, gathered, inputs):
            # Its result lies in the storage: another pod only has to tell it.
            _begin(draft, spec, gathered, repeats=(build.repeats or 0) + 1)
        return
    obstacle = draft.observed.obstacle
    if obstacle is not None:
        if obstacle.permanent:
            draft.fail_build_by_user(obstacle.reason, obstacle.message)
        else:
            draft.go_on(obstacle.reason, obstacle.message)
            draft.look_again_in(_OBSTACLE_RETRY_SECONDS)
        return
    task = task_of(spec, gathered, build.sequence)
    if task is None or task.digest != build.digest:
        # Its Job was deleted by other hands, and its inputs are not there any more.
        _begin(draft, spec, gathered)
        return
    draft.update_build(generation=draft.observed.bundle.generation, stage=None)
    built = draft.condition(Type.BUILT)
    # What stands in the way is told until the Job is there, or the two would alternate with each try.
    if draft.holds(Type.STALLED) or (built is not None and built.reason in _PAUSED):
        draft.go_on(Reason.WAITING_FOR_POD, f"build {build.sequence} of {len(task.adapters)} adapters is being started")
    _make_job(draft, spec, gathered, task)


def _is_outdated(draft: BundleDraft, spec: AdapterBundleSpec, build: BuildStatus, child: ChildView) -> bool:
    """Whether the spec was changed in what the pod of a build under way is given: its image, resources, Secrets, …"""
    if build.generation == draft.observed.bundle.generation or child.finished or child.succeeded is not None:
        return False
    return child.resources_digest != means_digest(spec)


def _make_job(draft: BundleDraft, spec: AdapterBundleSpec, gathered: Gathered, task: BundleBuild) -> None:
    observed = draft.observed
    draft.act(build_job(observed.bundle, spec, gathered, task, ca_certificate=observed.ca_certificate, settings=draft.settings))


def _settle(draft: BundleDraft, spec: AdapterBundleSpec, gathered: Gathered, inputs: str) -> None:
    """Nothing is to be built: what is waited for, and what is left of the last build."""
    build = draft.build
    if build is not None and build.digest != inputs:
        message = (
            "spec.updatePolicy is Manual, and other adapters than those built in are there: "
            f"kubectl annotate ab {draft.observed.bundle.name} olivine.dev/update=$(date +%s) --overwrite builds them in"
        )
        draft.rest(Reason.UPDATE_PENDING, message)
    elif build is not None and build.failed:
        failure = draft.status.last_failure
        if failure is not None and not draft.holds(Type.STALLED):
            draft.stall(failure.reason, failure.message)  # a spec that was refused meanwhile is as it was
    elif build is not None:
        _tell_built(draft)
        waiting = [one.name for one in gathered.candidates if one.state == "Waiting"]
        told = f"waits for the FineTuneJobs of {', '.join(waiting[:_SHOWN])}" if waiting else "the newest adapters are built in"
        if gathered.excess:
            told += (
                f"; {gathered.excess} more are left out: a bundle has at most {ADAPTER_LIMIT}, so narrow spec.selector, or make two"
            )
        # What is served does not change meanwhile: a GitOps controller need not wait.
        draft.rest(Reason.WAITING_FOR_JOBS if waiting else Reason.FINISHED, told)
    _retire(draft, spec)


def _tell_built(draft: BundleDraft) -> None:
    """After a spec that was refused: what the last build came to stands again."""
    ready = draft.condition(Type.READY)
    if ready is not None and not draft.holds(Type.BUILT):
        draft.set(Type.BUILT, "True", ready.reason, ready.message)
        draft.set(Type.STALLED, "False", Reason.FINISHED, "the spec is as it was built")


def _retire(draft: BundleDraft, spec: AdapterBundleSpec) -> None:
    """Deletes the last build's Job when its time is over."""
    build, seconds = draft.build, spec.ttl_seconds_after_finished
    child = _job_of(draft, build) if build is not None else None
    if child is None or child.deleting or seconds is None or build is None or build.finished_at is None:
        return
    due = build.finished_at + timedelta(seconds=seconds)
    if draft.now < due:
        draft.look_again_in((due - draft.now).total_seconds())
    else:
        draft.act(DeleteChild(name=child.name, uid=child.uid))


def _suspend(draft: BundleDraft) -> None:
    """No build runs; one that did is made again, and goes on from what it has uploaded."""
    _pause(draft)
    if draft.is_building:
        draft.set(Type.BUILT, "False", Reason.SUSPENDED_BY_USER, "spec.suspend is true: the build goes on when it is false")
    elif draft.build is None:
        draft.set(Type.BUILT, "False", Reason.SUSPENDED_BY_USER, "spec.suspend is true: the first build starts when it is false")
    elif not draft.build.failed:
        _tell_built(draft)
    if draft.holds(Type.STALLED) and (draft.build is None or not draft.build.failed):
        draft.set(Type.STALLED, "False", Reason.SUSPENDED_BY_USER, "what was wrong with the spec is corrected")
    draft.rest(Reason.SUSPENDED_BY_USER, "spec.suspend is true: nothing is built")


def _pause(draft: BundleDraft) -> None:
    """Of a build under way no pod goes on; when it is wanted again its Job is made anew, and goes on from what it has uploaded."""
    child = _job_of(draft, draft.build) if draft.is_building and draft.build is not None else None
    if child is not None and not child.deleting:
        draft.act(DeleteChild(name=child.name, uid=child.uid))


def _job_of(draft: BundleDraft, build: BuildStatus) -> ChildView | None:
    return next((one for one in draft.observed.children if one.name == build.job), None)


def _remove_old_jobs(draft: BundleDraft) -> None:
    """Of a build that a later one has taken the place of."""
    build = draft.build
    for child in draft.observed.children:
        if build is not None and child.name != build.job and not child.deleting:
            draft.act(DeleteChild(name=child.name, uid=child.uid))
