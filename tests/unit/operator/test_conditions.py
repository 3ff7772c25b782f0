"""Conditions keep their times, and the phase follows from them."""

import pytest

from olivine_api.status import Condition, ConditionType, Phase
from olivine_operator.plan.conditions import Change, phase_of, truncate, with_condition
from tests.unit.operator.builders import T0, after

READY = Change(type=ConditionType.RUNNING, status="True", reason="PodRunning", message="runs")


def held(*kinds: str) -> list[Condition]:
    return [Condition(type=kind, status="True", reason="r", last_transition_time=T0) for kind in kinds]


@pytest.mark.parametrize(
    ("kinds", "phase"),
    [
        ((), Phase.PENDING),
        (("Validated",), Phase.PENDING),
        (("Validated", "Running"), Phase.RUNNING),
        (("Running", "Suspended"), Phase.SUSPENDED),
        (("Running", "Complete"), Phase.SUCCEEDED),
        (("Complete", "Failed"), Phase.FAILED),
        (("Suspended", "Failed"), Phase.FAILED),
    ],
)
def test_the_phase_is_a_function_of_the_conditions(kinds: tuple[str, ...], phase: Phase) -> None:
    assert phase_of(held(*kinds)) is phase


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = with_condition([], READY, generation=1, now=T0)
    assert with_condition(first, READY, generation=2, now=after(9)) == first
    other = Change(type=ConditionType.RUNNING, status="True", reason="PodRunning", message="runs elsewhere")
    assert with_condition(first, other, generation=2, now=after(9))[0].last_transition_time == T0
    gone = Change(type=ConditionType.RUNNING, status="False", reason="Restarting", message="")
    assert with_condition(first, gone, generation=2, now=after(9))[0].last_transition_time == after(9)


def test_messages_are_as_long_as_status_allows() -> None:
    assert truncate("x" * 5000) == "x" * 1021 + "…"
    # In bytes, and never through the middle of a character.
    assert truncate("ä" * 1024) == "ä" * 510 + "…"
    assert truncate("ä" * 512) == "ä" * 512
    assert truncate("short") == "short"
