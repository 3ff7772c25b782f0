"""Takes the place of a kubelet that is gone: declares its pod failed, so that the Job controller makes another one."""

import logging
from datetime import UTC, datetime

from olivine_api.reasons import Reason
from olivine_operator.plan.observed import JobView
from olivine_operator.plan.outcome import RemoveLostPod
from olivine_operator.runtime.api import PODS, ApiError, KubeApi
from olivine_operator.runtime.logs import about

_log = logging.getLogger(__name__)


async def remove_lost_pod(api: KubeApi, job: JobView, action: RemoveLostPod) -> None:
    """Failed with DisruptionTarget, which costs no retry; then gone by force. The uid keeps a successor safe."""
    about(_log, job).warning("removing pod %s by force: %s", action.name, action.message)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        pod = await api.get(PODS, job.namespace, action.name)
        others = [c for c in pod["status"].get("conditions") or () if c["type"] != "DisruptionTarget"]
        disrupted = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": Reason.NODE_LOST,
            "message": action.message,
            "lastTransitionTime": now,
        }
        status = {"phase": "Failed", "reason": Reason.NODE_LOST, "message": action.message, "conditions": [*others, disrupted]}
        body = {"metadata": {"uid": action.uid}, "status": status}
        await api.patch(PODS, job.namespace, action.name, body, subresource="status")
    except ApiError as error:
        if error.code != 404:
            raise
        return  # it went by itself
    await api.delete(PODS, job.namespace, action.name, uid=action.uid, by_force=True)
