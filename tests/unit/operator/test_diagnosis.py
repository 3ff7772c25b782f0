"""What the numbers say, and what they do not."""

from typing import Any

import pytest

from olivine_api.status import Artifact, CurvePoint, FineTuneJobStatus, Overrides, Resolved, ResolvedData, Utilization
from olivine_operator.plan.diagnosis import diagnose

ARTIFACTS = [Artifact(kind="Adapter", uri="u", digest="d", bytes=1)]


def evals(*losses: float) -> dict[str, Any]:
    return {"curve": [CurvePoint(step=10 * (i + 1), eval_loss=loss) for i, loss in enumerate(losses)]}


def trains(*losses: float) -> dict[str, Any]:
    return {"curve": [CurvePoint(step=10 * (i + 1), train_loss=loss) for i, loss in enumerate(losses)]}


def rows(**counts: int) -> dict[str, Any]:
    return {"resolved": Resolved(data=ResolvedData(validation_rows=0, digest="d", **counts))}


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing known": ({}, []),
    "a loss that falls": (evals(3, 2, 1), []),
    "worse since long": (evals(3, 1, 1.2, 1.3), ["Overfitting"]),
    "worse once": (evals(3, 1, 1.3), []),
    "worse by noise": (evals(3, 1, 1.01, 1.02), []),
    "worse and better again": (evals(3, 1, 1.3, 0.99), []),
    "a training loss that explodes": (trains(3, 1, 4, 5, 6), ["Diverged"]),
    "one that wanders": (trains(3, 1, 1.4, 1.2, 1.1), []),
    "one that was higher at the start": (trains(9, 1, 4, 5, 6), []),
    "one with a spike": (trains(3, 1, 9, 1, 1), []),
    "a tuned model that is worse": (
        {"baseline": {"evalLoss": 2}, "metrics": {"evalLoss": 2.5}, "artifacts": ARTIFACTS},
        ["NoImprovement"],
    ),
    "one that is worse so far": ({"baseline": {"evalLoss": 2}, "metrics": {"evalLoss": 2.5}}, []),
    "one that is better": ({"baseline": {"evalLoss": 2}, "metrics": {"evalLoss": 1.5}, "artifacts": ARTIFACTS}, []),
    "many rows cut": (rows(rows=100, truncated=20), ["TruncatedData"]),
    "many rows dropped": (rows(rows=80, dropped=20), ["TruncatedData"]),
    "few rows cut": (rows(rows=1000, truncated=3), []),
    "a healed batch": ({"overrides": Overrides(batch_size=2, gradient_accumulation_steps=4)}, ["OutOfMemory"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_diagnosis_has_a_code_a_sentence_and_an_advice(case: str) -> None:
    members, codes = CASES[case]
    found = diagnose(FineTuneJobStatus(**members))
    assert [item.code for item in found] == codes
    assert all(item.message and item.advice for item in found)


def test_steps_that_wait_for_rows_are_told() -> None:
    for share, told in ((0.1, False), (0.4, True)):
        found = diagnose(FineTuneJobStatus(utilization=Utilization(cpu=0.5, input=share)))
        assert [one.code for one in found] == (["SlowInput"] if told else [])
        assert all("40%" in one.message for one in found)
