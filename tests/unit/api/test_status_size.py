"""An object stays under 64 KiB: the status with everything at its bound, beside a large spec."""

import json
from datetime import UTC, datetime
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import MaxLen
from pydantic import BaseModel
from pydantic.types import StringConstraints

from olivine_api.status import ConditionType, FineTuneJobStatus

LIMIT = 64 * 1024
# What a spec takes that uses most of its fields; a spec at all its bounds at once is nobody's.
SPEC = 12 * 1024
AT = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)


def largest(kind: Any, bound: int | None = None) -> Any:
    """A value of a type with every member there, and as long as it may be."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        marks = [mark for item in arguments[1:] for mark in getattr(item, "metadata", [item])]
        bounds = [mark.max_length for mark in marks if isinstance(mark, StringConstraints | MaxLen)]
        return largest(arguments[0], next(iter(bounds), bound))
    if origin in (Union, UnionType):
        return largest(next(item for item in arguments if item is not type(None)), bound)
    if origin is Literal:
        return max(arguments, key=len)
    if origin in (list, dict):
        assert bound is not None, f"without a bound: {kind}"
        if origin is list:
            return [largest(arguments[0]) for _ in range(bound)]
        return {f"{number:02}{largest(arguments[0])[2:]}": largest(arguments[1]) for number in range(bound)}
    return largest_scalar(kind, bound)


def largest_scalar(kind: Any, bound: int | None) -> Any:
    if issubclass(kind, BaseModel):
        members = get_type_hints(kind, include_extras=True)
        return kind.model_construct(**{name: largest(members[name]) for name in kind.model_fields})
    if issubclass(kind, Enum):
        return max(kind, key=lambda member: len(member.value))
    if kind is str:
        assert bound is not None, "a text without a bound"
        return "x" * bound
    return {datetime: AT, float: -1.23456e-07, int: 2**53, bool: False}[kind]


def test_a_status_at_all_its_bounds_leaves_room_for_the_spec() -> None:
    status = largest(FineTuneJobStatus)
    # Each type once.
    conditions = [status.conditions[0].model_copy(update={"type": kind.value}) for kind in ConditionType]
    status = status.model_copy(update={"conditions": conditions})
    assert len(status.curve) == 64
    size = len(json.dumps(status.to_json_dict()).encode())
    assert size + SPEC < LIMIT, f"{size} bytes of status"
