"""Kueue's Workloads: the user's suspend is their spec.active."""

import logging

from olivine_operator.plan.observed import JobView
from olivine_operator.plan.outcome import SetWorkloadActive
from olivine_operator.runtime.api import OLD_WORKLOADS, WORKLOADS, ApiError, KubeApi
from olivine_operator.runtime.logs import about

_log = logging.getLogger(__name__)


async def set_active(api: KubeApi, job: JobView, action: SetWorkloadActive) -> None:
    """Writes spec.active, in whichever version the cluster has."""
    about(_log, job).info("setting spec.active of Workload %s to %s", action.name, action.active)
    for kind in (WORKLOADS, OLD_WORKLOADS):
        try:
            await api.patch(kind, job.namespace, action.name, {"spec": {"active": action.active}})
        except ApiError as error:
            if error.code != 404:
                raise
        else:
            return
