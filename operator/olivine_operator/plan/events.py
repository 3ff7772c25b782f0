"""Events: the story that `kubectl describe` tells, derived from how a status changes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from olivine_api.reasons import Reason
from olivine_api.status import Condition, ConditionType, FineTuneJobStatus
from olivine_operator.plan.conditions import find, truncate
from olivine_operator.plan.outcome import EventDraft

# Reasons for not running that are no news: a job passes through them, or another condition tells of them.
_QUIET = frozenset(
    {
        Reason.WAITING_FOR_POD,
        Reason.WAITING_FOR_CHILD,
        Reason.POD_LEAVING,
        Reason.RESIZING,
        Reason.SUSPENDED_BY_USER,
        Reason.FINISHED,
    }
)

# In the order of the story; Validated False is told by Failed.
_STORY: Mapping[tuple[ConditionType, str], Literal["Normal", "Warning"]] = MappingProxyType(
    {
        (ConditionType.VALIDATED, "True"): "Normal",
        (ConditionType.SUSPENDED, "True"): "Normal",
        (ConditionType.SUSPENDED, "False"): "Normal",
        (ConditionType.QUOTA_RESERVED, "True"): "Normal",
        (ConditionType.RUNNING, "True"): "Normal",
        (ConditionType.RUNNING, "False"): "Warning",
        (ConditionType.EVALUATED, "False"): "Normal",
        (ConditionType.EVALUATED, "True"): "Normal",
        (ConditionType.PUBLISHED, "True"): "Normal",
        (ConditionType.COMPLETE, "True"): "Normal",
        (ConditionType.FAILED, "True"): "Warning",
    }
)


def events_between(before: FineTuneJobStatus, after: FineTuneJobStatus) -> tuple[EventDraft, ...]:
    """One Event for each condition that came to say something new; messages alone are no news."""
    drafts: list[EventDraft] = []
    for (kind, truth), level in _STORY.items():
        new, old = find(after.conditions, kind), find(before.conditions, kind)
        if new is None or new.status != truth or (kind is ConditionType.RUNNING and new.reason in _QUIET):
            continue
        another_incident = new.reason == Reason.RESTARTING and after.restarts > before.restarts
        if _says_the_same(old, new) and not another_incident:
            continue
        drafts.append(EventDraft(type=level, reason=new.reason, message=truncate(new.message)))
    return tuple(drafts)


def _says_the_same(old: Condition | None, new: Condition) -> bool:
    return old is not None and (old.status, old.reason) == (new.status, new.reason)
