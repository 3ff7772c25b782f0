"""What the condition Built says of a build's pod: what it does, or why it does not run."""

from datetime import timedelta

from olivine_api.adapterbundle import BundleConditionType as Type
from olivine_api.bundle_build import BuildSnapshot, BuildStage
from olivine_api.reasons import Reason
from olivine_operator.plan import failures
from olivine_operator.plan.bundle.draft import BundleDraft
from olivine_operator.plan.failures import PodFailure
from olivine_operator.plan.observed import ChildView, PodView
from olivine_operator.plan.outcome import ExplainNoPod, SuspendChild
from olivine_operator.plan.waiting import slow_at, waiting_of

_POD_CREATION = timedelta(seconds=20)
_EXPLAIN_AGAIN_SECONDS = 60


def show_build(draft: BundleDraft, child: ChildView, failed: tuple[PodFailure, ...], snapshot: BuildSnapshot | None) -> None:
    """Sets Built from what the pod of a build that has not ended does."""
    pods = draft.observed.pods
    if any(pod.phase == "Succeeded" for pod in pods):
        return  # the Job will say so in a moment
    if child.suspended and not child.queued:
        draft.act(SuspendChild(name=child.name, suspend=False))
    if child.suspended:
        draft.go_on(Reason.WAITING_FOR_CHILD, "the build waits until Kueue admits its Job")
        return
    active = sorted((pod for pod in pods if pod.active), key=lambda pod: (pod.created, pod.name))
    if active:
        _show_pod(draft, active[-1], snapshot)
    elif failed:
        again = failures.next_retry(failed)
        when = f"; the next try comes about {again:%H:%M:%S} UTC" if again is not None else ""
        draft.update(next_retry_time=again)
        draft.go_on(Reason.RESTARTING, failed[-1].message + when)
    elif child.pods_since is not None and draft.now > child.pods_since + _POD_CREATION and not pods:
        _tell_no_pod(draft, child)
    else:
        if child.pods_since is not None:
            draft.look_again_at(child.pods_since + _POD_CREATION)
        draft.go_on(Reason.WAITING_FOR_POD, "the builder pod is being started")


def _show_pod(draft: BundleDraft, pod: PodView, snapshot: BuildSnapshot | None) -> None:
    draft.update(next_retry_time=None)
    if pod.running:
        draft.update_build(started_at=(draft.build.started_at if draft.build is not None else None) or draft.now)
        if snapshot is not None and snapshot.stage in (BuildStage.VERIFYING, BuildStage.PUBLISHING):
            # Without the count: a write for each adapter would say little.
            draft.go_on(Reason.VERIFYING, f"pod {pod.name} proves the adapters")
        else:
            draft.go_on(Reason.BUILDING, f"pod {pod.name} builds")
        return
    if pod.termination is not None:
        return  # its phase will say how it ended in a moment
    trouble = waiting_of(pod, draft.now)
    slow = slow_at(pod, draft.now)
    if slow:
        draft.look_again_in(slow + 1)
    built = draft.condition(Type.BUILT)
    if trouble is None:
        draft.go_on(Reason.WAITING_FOR_POD, "the builder pod is being started")
    elif built is None or built.reason != trouble.reason:
        # The first message of a reason stays: kubelet and scheduler word the same trouble anew again and again.
        draft.go_on(trouble.reason, trouble.message)


def _tell_no_pod(draft: BundleDraft, child: ChildView) -> None:
    obstacle = draft.observed.obstacle
    draft.look_again_in(_EXPLAIN_AGAIN_SECONDS)
    if obstacle is not None:
        draft.go_on(obstacle.reason, obstacle.message)
        return
    likely = (
        f"the Job {child.name} lacks a pod: its ServiceAccount is missing, or a ResourceQuota, Pod Security or an admission webhook"
        f" refuses it; kubectl describe job {child.name} -n {child.key[0]} tells which"
    )
    draft.act(ExplainNoPod(name=child.name, likely=likely))
