"""Pods that are to go: most go within their grace, those of a node that does not answer never do."""

from datetime import timedelta

from olivine_api.reasons import Reason
from olivine_api.status import ConditionType
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.observed import PodView
from olivine_operator.plan.outcome import RemoveLostPod


def show_leaving(draft: Draft, pod: PodView) -> None:
    """Tells of a pod that is on its way, or whose node was lost; removes the latter where the administrator wants that."""
    draft.update(next_retry_time=None)
    gone_by = pod.gone_by + timedelta(seconds=draft.settings.lost_pod_timeout_seconds) if pod.gone_by is not None else None
    if gone_by is None or draft.now < gone_by or not pod.node:
        where = f" from node {pod.node}" if pod.node else ""
        draft.set(
            ConditionType.RUNNING, "False", Reason.POD_LEAVING, f"pod {pod.name} is going away{where}; the next one comes then"
        )
        if gone_by is not None and pod.node:
            draft.look_again_at(gone_by)
        return
    lost = f"node {pod.node} does not answer, and pod {pod.name} did not go from it within its grace"
    if draft.settings.remove_lost_pods:
        draft.set(ConditionType.RUNNING, "False", Reason.NODE_LOST, f"{lost}: it is removed by force, and the next one comes")
        draft.act(RemoveLostPod(name=pod.name, uid=pod.uid, message=lost))
        return
    way_out = f"kubectl delete node {pod.node}, or bring it back; no other pod is made before (setting removeLostPods would)"
    draft.set(ConditionType.RUNNING, "False", Reason.NODE_LOST, f"{lost}: {way_out}")
