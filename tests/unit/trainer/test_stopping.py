"""Early stopping: when it ends, what is published, and that a resumed run decides the same."""

import math
from pathlib import Path
from typing import Any

import pytest

from olivine_api.finetunejob import EarlyStopping
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.reporting.board import Board
from olivine_trainer.storage.records import Published
from tests.unit.trainer.support import adapter_bytes, kill_in_step, make_job, run_job, tone_rows, write_rows

# At this rate the validation loss rises again after a few evaluations.
STOPPING: dict[str, Any] = {
    "training__maxSteps": 60,
    "training__learningRate": 0.05,
    "training__warmupSteps": 0,
    "training__scheduler": "constant",
    "training__earlyStopping": {"patience": 2},
    "evaluation__everySteps": 2,
    "evaluation__samples": 0,
    "evaluation__metrics": [{"name": "perplexity"}],
    "checkpoint__everySteps": 5,
    "checkpoint__keepAfterSuccess": 3,
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", tone_rows(24))


def after(values: list[float | None], *, lower: bool = True, **asked: Any) -> Any:
    from olivine_trainer.loop.stopping import Stopping

    state = Stopping()
    for step, value in enumerate(values, start=1):
        state = state.after(step, value, EarlyStopping(**asked), lower=lower)
    return state


CASES: dict[str, tuple[list[float | None], dict[str, Any], tuple[int, int]]] = {
    "falls": ([3.0, 2.0, 1.0], {}, (3, 0)),
    "rises": ([1.0, 2.0, 3.0], {}, (1, 2)),
    "rises, wanted": ([1.0, 2.0, 3.0], {"mode": "max"}, (3, 0)),
    "rises, better when higher": ([1.0, 2.0, 3.0], {"lower": False}, (3, 0)),
    "falls, better when higher": ([3.0, 2.0, 1.0], {"lower": False}, (1, 2)),
    "falls, wanted": ([3.0, 2.0, 1.0], {"lower": False, "mode": "min"}, (3, 0)),
    "stays": ([1.0, 1.0], {}, (1, 1)),
    "too little": ([1.0, 0.95, 0.91], {"min_delta": 0.1}, (1, 2)),
    "enough in sum": ([1.0, 0.95, 0.89], {"min_delta": 0.1}, (3, 0)),
    "no number": ([1.0, None, 0.5, None], {}, (3, 1)),
    "never a number": ([None, None], {}, (0, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_patience_counts_evaluations_without_an_improvement(case: str) -> None:
    values, asked, expected = CASES[case]
    state = after(values, **asked)
    assert (state.best_step, state.worse) == expected
    assert state.over(EarlyStopping(patience=2)) == (expected[1] >= 2)


def evaluations(published: Published) -> dict[int, float]:
    return {point.step: point.eval_loss for point in published.snapshot.curve if point.eval_loss is not None}


def test_training_ends_with_the_best_weights(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    published = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/runs", **STOPPING), tmp_path / "scratch")
    measured = evaluations(published)
    best = min(measured, key=lambda step: measured[step])
    last = max(measured)
    assert published.snapshot.progress.step == last == best + 4 < 60  # two evaluations of two steps each
    assert published.snapshot.best is not None
    assert (published.snapshot.best.step, published.snapshot.best.value) == (best, measured[best])
    assert published.snapshot.metrics["evalLoss"] == measured[best]
    # The same weights as those of a run that ends at that step.
    short = {**STOPPING, "training__maxSteps": best, "training__earlyStopping": None}
    until = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/short", **short), tmp_path / "other")
    assert adapter_bytes(published) == adapter_bytes(until)


@pytest.mark.parametrize("back", [1, 2, 3])
def test_a_resumed_run_stops_at_the_same_step_with_the_same_weights(
    tiny_model: Path, rows: Path, tmp_path: Path, back: int
) -> None:
    whole = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/a", **STOPPING), tmp_path / "0")
    job = make_job(tiny_model, rows, f"file://{tmp_path}/b", **(STOPPING | {"checkpoint__everySteps": 1}))
    # Killed when the best evaluation is past: its weights are only in the checkpoint.
    kill_in_step(job, whole.snapshot.progress.step - back, tmp_path / "1")
    resumed = run_job(job, tmp_path / "2")
    assert resumed.snapshot.resumed_from_step
    assert evaluations(resumed) == evaluations(whole)
    assert resumed.snapshot.progress.step == whole.snapshot.progress.step
    assert adapter_bytes(resumed) == adapter_bytes(whole)


def test_without_an_evaluation_the_last_weights_are_published(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    changes = STOPPING | {"training__maxSteps": 3, "evaluation__everySteps": 50}
    published = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/a", **changes), tmp_path / "0")
    plain = run_job(
        make_job(tiny_model, rows, f"file://{tmp_path}/b", **(changes | {"training__earlyStopping": None})), tmp_path / "1"
    )
    assert adapter_bytes(published) == adapter_bytes(plain)


@pytest.mark.parametrize(("metric", "key"), [("accuracy", "accuracy"), ("exact_match", "exactMatch")])
def test_a_metric_of_answers_is_followed_too(tiny_model: Path, rows: Path, tmp_path: Path, metric: str, key: str) -> None:
    changes = STOPPING | {
        "evaluation__metrics": [{"name": metric}],
        "training__earlyStopping": {"metric": metric, "patience": 1, "minDelta": 1.5},
    }
    board = Board(None)
    published = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/runs", **changes), tmp_path / "scratch", board=board)
    # No share is 1.5 better than another: the second evaluation is the last.
    assert published.snapshot.progress.step == 4
    assert published.snapshot.best is not None
    assert (published.snapshot.best.metric, published.snapshot.best.step) == (key, 2)
    assert math.isfinite(published.snapshot.metrics[key])


def test_a_metric_that_is_not_measured_is_told_before_training(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", **(STOPPING | {"training__earlyStopping": {"metric": "f1"}}))
    with pytest.raises(
        ConfigurationError, match=r"earlyStopping\.metric is f1, .* measured are evalLoss, perplexity; name one of them"
    ):
        run_job(job, tmp_path / "scratch")


def _with_other_rows(tmp_path: Path, metric: str) -> dict[str, Any]:
    other = write_rows(tmp_path / "other.jsonl", [{"phrase": f"oh {index}", "tone": "joy"} for index in range(5)])
    return STOPPING | {
        "data__test": {"uri": f"file://{other}"},
        "evaluation__benchmarks": [{"name": "cards", "uri": f"file://{other}", "metric": "accuracy"}],
        "evaluation__metrics": [{"name": "accuracy"}],
        "evaluation__gates": [{"metric": "test_accuracy", "min": 0}],
        "training__earlyStopping": {"metric": metric, "mode": "max", "patience": 1, "minDelta": 1.5},
    }


def test_a_metric_of_a_benchmark_decides_nothing_while_training(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """The API sees by the name what is of data.test; a benchmark's key is any name."""
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", **_with_other_rows(tmp_path, "cardsAccuracy"))
    with pytest.raises(ConfigurationError) as caught:
        run_job(job, tmp_path / "scratch")
    assert caught.value.message == (
        "training.earlyStopping.metric is cardsAccuracy, which is of data.test or a benchmark: training that ends by it has seen these"
        " rows, and they are measured only before and after; name a metric of the validation rows (evalLoss, accuracy), and put"
        " cardsAccuracy into evaluation.gates"
    )


def test_evaluations_in_between_leave_the_test_rows_alone(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """The metric needs answers; after the base, until the end, they are of the validation rows alone."""
    measured: list[set[str]] = []

    class Watching(Board):
        def update(self, **changes: Any) -> None:
            measured.append(set(changes.get("metrics", ())))
            super().update(**changes)

    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", **_with_other_rows(tmp_path, "accuracy"))
    published = run_job(job, tmp_path / "scratch", board=Watching(None))
    between = [keys for keys in measured if "accuracy" in keys]
    *before, last = between
    assert len(before) >= 2, "two evaluations, then the end"
    assert all(not any(key.startswith(("test", "cards")) for key in keys) for keys in before)
    assert last == set(published.snapshot.metrics) >= {"testLoss", "testAccuracy", "cardsAccuracy", "accuracy"}
