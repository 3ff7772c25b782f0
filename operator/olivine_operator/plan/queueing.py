"""A job in one of Kueue's queues: Kueue owns its child's `suspend`; the user's goes to the Workload's `active`."""

from olivine_api.reasons import Reason
from olivine_api.status import ConditionType
from olivine_operator.plan.draft import Draft
from olivine_operator.plan.observed import ChildView
from olivine_operator.plan.outcome import SetWorkloadActive

_WAITS = "waits until Kueue admits it"


def tell_queued(draft: Draft) -> None:
    """What is told of a job whose child Kueue has not seen yet."""
    draft.set(ConditionType.QUOTA_RESERVED, "False", Reason.WAITING_FOR_QUOTA, _WAITS)


def follow_queue(draft: Draft, child: ChildView) -> None:
    """Tells of the quota, and hands the user's `suspend` on."""
    _tell_quota(draft, child)
    suspend, workload = draft.wishes.suspend, draft.observed.workload
    if workload is None:
        if suspend:
            draft.set(ConditionType.SUSPENDED, "False", Reason.LEFT_TO_KUEUE, _unheard(draft))
        return
    # What others deactivated is theirs to activate: Kueue itself does so after too many evictions.
    ours = draft.holds(ConditionType.SUSPENDED)
    if suspend and workload.active:
        draft.act(SetWorkloadActive(name=workload.name, active=False))
    elif not suspend and not workload.active and ours:
        draft.act(SetWorkloadActive(name=workload.name, active=True))


def suspended_by_user(draft: Draft, child: ChildView) -> bool:
    """Whether a queued child is suspended because its user wants it: told until Kueue may admit it again."""
    workload = draft.observed.workload
    if workload is None or workload.active or not child.suspended:
        return False
    return draft.wishes.suspend or draft.holds(ConditionType.SUSPENDED)


def _tell_quota(draft: Draft, child: ChildView) -> None:
    workload = draft.observed.workload
    reserved = workload.reserved if workload is not None else not child.suspended
    if reserved:
        draft.set(ConditionType.QUOTA_RESERVED, "True", Reason.QUOTA_RESERVED, "Kueue has reserved quota")
    elif workload is not None and not workload.active and not draft.wishes.suspend:
        message = f"the Workload {workload.name} is not active: set its spec.active to true, and Kueue may admit it"
        draft.set(ConditionType.QUOTA_RESERVED, "False", Reason.WAITING_FOR_QUOTA, message)
    elif workload is not None:
        why = f": {workload.message}" if workload.message else ""
        draft.set(ConditionType.QUOTA_RESERVED, "False", Reason.WAITING_FOR_QUOTA, _WAITS + why)
    elif draft.observed.serves_workloads:
        tell_queued(draft)
    else:
        message = f"{_WAITS}, and the cluster has no Kueue: install it, or use a new job without the queue's label"
        draft.set(ConditionType.QUOTA_RESERVED, "False", Reason.WAITING_FOR_QUOTA, message)


def _unheard(draft: Draft) -> str:
    if draft.observed.serves_workloads:
        return "spec.suspend takes effect when Kueue has made the job's Workload"
    return "spec.suspend has no effect: the job carries a queue's label, and the cluster has no Kueue that would suspend it"
