"""Snapshots: bounded, never going back, and a sentence about the evaluation."""

from datetime import timedelta
from typing import Any

import pytest

from olivine_api.status import Artifact, CheckpointStatus, FineTuneJobStatus, Stage
from olivine_operator.plan.snapshots import UnboundedNumberError, bounded, evaluated, merge, refuse_unbounded
from tests.unit.operator.builders import T0, after, snapshot


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, -(2**60)])
def test_numbers_that_no_object_may_carry_are_refused_with_their_place(value: float) -> None:
    with pytest.raises(UnboundedNumberError, match=r"a\[1\]\.b"):
        refuse_unbounded({"a": [0, {"b": value}]})


def test_times_are_kept_within_reason() -> None:
    def told(seconds: float) -> Any:
        return bounded(snapshot(at=after(seconds)), T0).progress.last_update_time

    assert told(-10) == after(-10)
    assert told(3600) == T0
    assert told(-3600) == T0 - timedelta(minutes=5)
    saved = CheckpointStatus(uri="u", step=1, digest="d", saved_at=after(99).replace(tzinfo=None))
    kept = bounded(snapshot(checkpoint=saved), T0).checkpoint
    assert kept is not None
    assert kept.saved_at == T0


def test_what_is_older_or_superseded_changes_nothing() -> None:
    status = merge(FineTuneJobStatus(), snapshot(5, attempt=2, at=after(10)))
    assert merge(status, snapshot(9, attempt=1, at=after(99))) is status
    assert merge(status, snapshot(4, attempt=2, at=after(9))) is status
    assert merge(status, snapshot(6, attempt=2, at=after(11))).progress != status.progress


def test_a_young_attempt_keeps_what_an_earlier_one_measured() -> None:
    status = merge(FineTuneJobStatus(), snapshot(5, metrics={"trainLoss": 1.0}, lost_steps=2))
    later = merge(status, snapshot(0, Stage.LOADING_MODEL, attempt=2, at=after(9)))
    assert (later.metrics, later.lost_steps, later.attempt) == ({"trainLoss": 1.0}, 2, 2)


def test_an_attempt_that_loads_the_model_does_not_take_the_steps_back() -> None:
    """Workers that start again in place, or a new pod, know no step until the checkpoint is loaded: that takes minutes."""
    trained = snapshot(5)
    trained = trained.model_copy(update={"progress": trained.progress.model_copy(update={"total_steps": 8, "percent": 62})})
    status = merge(FineTuneJobStatus(), trained)
    young = snapshot(0, Stage.LOADING_MODEL, attempt=2, at=after(9))
    young = young.model_copy(update={"progress": young.progress.model_copy(update={"total_steps": None, "percent": None})})
    loading = merge(status, young)
    assert loading.progress is not None
    told = loading.progress
    assert (told.stage, told.step, told.percent, told.last_update_time) == (Stage.LOADING_MODEL, 5, 62, after(9))
    resumed = merge(
        loading,
        trained.model_copy(update={"attempt": 2, "progress": told.model_copy(update={"step": 3, "last_update_time": after(12)})}),
    )
    assert resumed.progress is not None
    assert resumed.progress.step == 3


def test_a_pod_without_an_attempt_moves_the_heartbeat_only() -> None:
    status = merge(FineTuneJobStatus(), snapshot(5, metrics={"trainLoss": 1.0}))
    later = merge(status, snapshot(0, Stage.STARTING, attempt=0, at=after(9)))
    assert later.progress is not None
    assert (later.progress.stage, later.progress.step, later.progress.last_update_time) == (Stage.STARTING, 5, after(9))
    assert (later.attempt, later.metrics) == (1, status.metrics)


def test_a_finished_runs_record_repeated_by_a_late_pod_is_taken() -> None:
    status = merge(FineTuneJobStatus(), snapshot(9, at=after(10)))
    assert merge(status, snapshot(10, at=after(5)), final=True).progress is not status.progress


@pytest.mark.parametrize(
    ("baseline", "metrics", "artifacts", "expected"),
    [
        ({}, {"trainLoss": 1.0}, [], None),
        ({"evalLoss": 3.0, "accuracy": 0.02}, {}, [], ("accuracy 0.02 (base), evalLoss 3.00 (base)", False)),
        # A validation loss on the way is not the tuned model's evaluation.
        ({"evalLoss": 3.0}, {"evalLoss": 2.0}, [], ("evalLoss 3.00 (base)", False)),
        (
            {"evalLoss": 3.0, "accuracy": 0.02},
            {"evalLoss": 0.1, "accuracy": 0.94, "trainLoss": 0.1},
            [Artifact(kind="Adapter", uri="u", digest="d", bytes=1)],
            ("accuracy 0.02 (base) -> 0.94 (tuned), evalLoss 3.00 (base) -> 0.10 (tuned)", True),
        ),
    ],
)
def test_the_evaluation_is_one_sentence(baseline: Any, metrics: Any, artifacts: Any, expected: Any) -> None:
    assert evaluated(FineTuneJobStatus(baseline=baseline, metrics=metrics, artifacts=artifacts)) == expected
