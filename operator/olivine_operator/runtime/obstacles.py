"""What the API server's refusals mean to a job: whose they are to mend, and whether another try may settle them."""

import re
from datetime import UTC, datetime, timedelta

from olivine_api.reasons import Reason
from olivine_operator.plan.conditions import truncate
from olivine_operator.plan.observed import JobView, Obstacle
from olivine_operator.plan.outcome import ExplainNoPod, ExplainSlowPod
from olivine_operator.plan.waiting import SETUP_TROUBLES
from olivine_operator.runtime.api import EVENTS, ApiError, Json, Kind, KubeApi

_QUOTA = "exceeded quota"
# Where a member of spec.pods stands in a Job or a JobSet.
_IN_CHILD = re.compile(r"\bspec\.(?:[\w.\[\]]+\.)?template\.spec\.(?:containers\[0\]\.)?")
# kubelet repeats what still holds every two minutes.
_STALE = timedelta(seconds=150)


def obstacle_of(kind: Kind, name: str, error: ApiError, *, users: bool) -> Obstacle:
    """What a refusal means; `users` says whether what spec.pods asks for is the cause. Raises what another try settles."""
    if error.code in (400, 422):
        refused = f"the API server refused the {kind.name} {name}: {error.message}"
        if users:
            # The spec is fixed from here on: the same manifest would be refused for ever.
            return Obstacle(reason=Reason.INVALID_SPEC, message=_IN_CHILD.sub("spec.pods.", refused), permanent=True)
        message = (
            "it is refused without anything that spec.pods asks for, too: the administrator has to correct the chart's settings "
            f"(trainer.podDefaults) or a policy of the cluster, and the job then starts by itself; {refused}"
        )
        return Obstacle(reason=Reason.CHILD_REFUSED, message=message)
    if error.code >= 500 and "failed calling webhook" in error.message:
        return Obstacle(reason=Reason.CHILD_REFUSED, message=f"the {kind.name} {name} is tried again: {error.message}")
    if error.code == 403 and "being terminated" not in error.message:
        reason = Reason.QUOTA_EXCEEDED if _QUOTA in error.message else Reason.CHILD_REFUSED
        return Obstacle(reason=reason, message=f"the {kind.name} {name} was refused: {error.message}")
    raise error


async def explain_no_pod(api: KubeApi, job: JobView, action: ExplainNoPod) -> Obstacle:
    """What the Job controller said when it could not make a pod; its Events are the only place where it does."""
    told = await _newest(api, job, {"involvedObject.kind": "Job", "involvedObject.name": action.name, "reason": "FailedCreate"})
    if told is None:
        return Obstacle(reason=Reason.POD_NOT_CREATED, message=action.likely)
    message = str(told.get("message", ""))
    reason = Reason.QUOTA_EXCEEDED if _QUOTA in message else Reason.POD_NOT_CREATED
    return Obstacle(reason=reason, message=truncate(f"no pod can be made: {message}"))


async def explain_slow_pod(api: KubeApi, job: JobView, action: ExplainSlowPod) -> Obstacle | None:
    """What kubelet said when it could not set a pod up lately; None where it said nothing."""
    told = await _newest(api, job, {"involvedObject.kind": "Pod", "involvedObject.name": action.name, "type": "Warning"})
    if told is None or told.get("reason") not in SETUP_TROUBLES or datetime.now(UTC) - _time_of(told) > _STALE:
        return None
    return Obstacle(reason=told["reason"], message=truncate(f"pod {action.name} cannot be set up: {told.get('message', '')}"))


async def _newest(api: KubeApi, job: JobView, fields: dict[str, str]) -> Json | None:
    try:
        events = await api.select(EVENTS, job.namespace, fields)
    except ApiError as error:
        if error.transient:
            raise
        return None  # the right to read them is lacking
    return max(events, key=_time_of, default=None)


def _time_of(event: Json) -> datetime:
    return datetime.fromisoformat(event.get("lastTimestamp") or event["metadata"]["creationTimestamp"])
