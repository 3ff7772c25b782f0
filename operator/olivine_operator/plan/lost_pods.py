"""Pods that are to go: most go within their grace, those of a node that does not answer never do."""

from datetime import timedelta

from olivine_api.reasons import Reason
from olivine_api.status import ConditionType
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.observed import PodView
from olivine_operator.plan.outcome import RemoveLostPod


def show_leaving(draft: Draft, pod: PodView) -> None:
    """Tells of a pod that is on its way, or whose node was lost."""
    draft.update(next_retry_time=None)
    if not show_lost(draft, pod):
        where = f" from node {pod.node}" if pod.node else ""
        message = f"pod {pod.name} is going away{where}; the next one comes then"
        draft.set(ConditionType.RUNNING, "False", Reason.POD_LEAVING, message)


def show_lost(draft: Draft, pod: PodView) -> bool:
    """Tells of a pod that ought to have gone, and removes it where the administrator wants that; returns whether it is such a one."""
    if pod.gone_by is None or not pod.node:
        return False
    gone_by = pod.gone_by + timedelta(seconds=draft.settings.lost_pod_timeout_seconds)
    if draft.now < gone_by:
        draft.look_again_at(gone_by)
        return False
    lost = f"node {pod.node} does not answer, and pod {pod.name} did not go from it within its grace"
    if draft.settings.remove_lost_pods:
        draft.set(ConditionType.RUNNING, "False", Reason.NODE_LOST, f"{lost}: it is removed by force, and the next one comes")
        draft.act(RemoveLostPod(name=pod.name, uid=pod.uid, message=lost))
    else:
        way_out = (
            f"kubectl delete node {pod.node}, or bring it back; no other pod is made before (the chart's lostPods.remove would)"
        )
        draft.set(ConditionType.RUNNING, "False", Reason.NODE_LOST, f"{lost}: {way_out}")
    return True
