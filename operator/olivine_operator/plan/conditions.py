"""Conditions and the phase that sums them up."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from olivine_api.status import Condition, ConditionType, Phase

MESSAGE_LIMIT = 1024
_CUT = "…".encode()
Truth = Literal["True", "False", "Unknown"]


def find(conditions: Sequence[Condition], kind: str) -> Condition | None:
    """The condition of a type."""
    return next((c for c in conditions if c.type == kind), None)


def holds(conditions: Sequence[Condition], kind: str) -> bool:
    """Whether a condition is True."""
    condition = find(conditions, kind)
    return condition is not None and condition.status == "True"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A condition as it is to be."""

    type: str
    status: Truth
    reason: str
    message: str


def with_condition(conditions: Sequence[Condition], change: Change, *, generation: int, now: datetime) -> list[Condition]:
    """The conditions with one of them set. One that says the same already is left as it is, so that nothing is written."""
    message = truncate(change.message)
    old = find(conditions, change.type)
    if old is not None and (old.status, old.reason, old.message) == (change.status, change.reason, message):
        return list(conditions)
    new = Condition(
        type=change.type,
        status=change.status,
        reason=change.reason,
        message=message,
        observed_generation=generation,
        last_transition_time=old.last_transition_time if old is not None and old.status == change.status else now,
    )
    return [new if c is old else c for c in conditions] if old is not None else [*conditions, new]


def truncate(message: str, limit: int = MESSAGE_LIMIT) -> str:
    """A message as long as status allows; in bytes, since an object's size is."""
    data = message.encode()
    return message if len(data) <= limit else data[: limit - len(_CUT)].decode(errors="ignore") + _CUT.decode()


def phase_of(conditions: Sequence[Condition]) -> Phase:
    """The phase: derived from the conditions, never decided on its own."""
    # The ends first: a condition of the way there may still hold.
    if holds(conditions, ConditionType.FAILED):
        return Phase.FAILED
    if holds(conditions, ConditionType.COMPLETE):
        return Phase.SUCCEEDED
    if holds(conditions, ConditionType.SUSPENDED):
        return Phase.SUSPENDED
    if holds(conditions, ConditionType.RUNNING):
        return Phase.RUNNING
    quota = find(conditions, ConditionType.QUOTA_RESERVED)
    if quota is not None and quota.status == "False":
        return Phase.QUEUED
    return Phase.PENDING


def is_terminal(conditions: Sequence[Condition]) -> bool:
    """Whether the job has ended, for good."""
    return holds(conditions, ConditionType.FAILED) or holds(conditions, ConditionType.COMPLETE)
