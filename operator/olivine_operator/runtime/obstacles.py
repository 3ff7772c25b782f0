"""What the API server's refusals mean to a job: whose they are to mend, and whether another try may settle them."""

from olivine_api.reasons import Reason
from olivine_operator.plan.conditions import truncate
from olivine_operator.plan.observed import JobView, Obstacle
from olivine_operator.plan.outcome import ExplainNoPod
from olivine_operator.runtime.api import EVENTS, ApiError, Kind, KubeApi

_QUOTA = "exceeded quota"


def obstacle_of(kind: Kind, name: str, error: ApiError, *, users: bool) -> Obstacle:
    """What a refusal means; `users` says whether what spec.pods asks for is the cause. Raises what another try settles."""
    if error.code in (400, 422):
        refused = f"the API server refused the {kind.name} {name}: {error.message}"
        if users:
            # The spec is fixed from here on: the same manifest would be refused for ever.
            return Obstacle(reason=Reason.INVALID_SPEC, message=refused, permanent=True)
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
    fields = {"involvedObject.kind": "Job", "involvedObject.name": action.name, "reason": "FailedCreate"}
    try:
        events = await api.select(EVENTS, job.namespace, fields)
    except ApiError as error:
        if error.transient:
            raise
        events = []  # the right to read them may be lacking
    if not events:
        return Obstacle(reason=Reason.POD_NOT_CREATED, message=action.likely)
    told = max(events, key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]).get("message", "")
    reason = Reason.QUOTA_EXCEEDED if _QUOTA in told else Reason.POD_NOT_CREATED
    return Obstacle(reason=reason, message=truncate(f"no pod can be made: {told}"))
