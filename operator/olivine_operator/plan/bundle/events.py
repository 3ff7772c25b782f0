"""Events of an AdapterBundle: the story that `kubectl describe` tells."""

from olivine_api.adapterbundle import AdapterBundleStatus
from olivine_api.adapterbundle import BundleConditionType as Type
from olivine_api.reasons import Reason
from olivine_operator.plan.conditions import find, holds, truncate
from olivine_operator.plan.outcome import EventDraft

_TOLD = 3  # adapters that are told of by name


def events_between(before: AdapterBundleStatus, after: AdapterBundleStatus) -> tuple[EventDraft, ...]:
    """A build that begins, a version that is there, what is in the way, adapters that were rejected; messages alone are no news."""
    drafts: list[EventDraft] = []
    new, old = after.build, before.build
    if new is not None and (old is None or old.sequence != new.sequence):
        drafts.append(EventDraft(type="Normal", reason="BuildStarted", message=f"build {new.sequence} by Job {new.job}"))
    ready = find(after.conditions, Type.READY)
    if after.bundle is not None and after.bundle != before.bundle and ready is not None:
        drafts.append(EventDraft(type="Normal", reason=Reason.PUBLISHED, message=ready.message))
    drafts += _troubles(before, after)
    known = {one.name for one in before.adapters if one.state == "Rejected"}
    fresh = [one for one in after.adapters if one.state == "Rejected" and one.name not in known]
    for one in fresh[:_TOLD]:
        drafts.append(EventDraft(type="Warning", reason="AdapterRejected", message=truncate(f"{one.name}: {one.reason}")))
    if len(fresh) > _TOLD:
        more = f"{len(fresh) - _TOLD} more adapters are rejected: kubectl get ab -o yaml tells why"
        drafts.append(EventDraft(type="Warning", reason="AdapterRejected", message=more))
    return tuple(drafts)


# What a build passes through.
_QUIET = frozenset(
    {
        Reason.WAITING_FOR_POD,
        Reason.WAITING_FOR_CHILD,
        Reason.WAITING_FOR_JOBS,
        Reason.NO_ADAPTERS,
        Reason.BUILDING,
        Reason.VERIFYING,
        Reason.SUSPENDED_BY_USER,
        Reason.UPDATE_PENDING,
    }
)


def _troubles(before: AdapterBundleStatus, after: AdapterBundleStatus) -> list[EventDraft]:
    new, old = find(after.conditions, Type.BUILT), find(before.conditions, Type.BUILT)
    if new is None or new.status != "False" or new.reason in _QUIET:
        return []
    again = after.restarts > before.restarts or holds(after.conditions, Type.STALLED) != holds(before.conditions, Type.STALLED)
    if old is not None and old.status == "False" and old.reason == new.reason and not again:
        return []
    return [EventDraft(type="Warning", reason=new.reason, message=truncate(new.message))]
