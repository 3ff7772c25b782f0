"""Status stays small, whatever is reported."""

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from olivine_api.exit_codes import Category, ExitCode, category_of
from olivine_api.status import CURVE_LIMIT, CurvePoint, Progress, Snapshot, Stage, thin_curve


@pytest.mark.parametrize("count", [0, 1, CURVE_LIMIT, CURVE_LIMIT + 1, 10_000])
def test_a_curve_is_thinned_not_cut(count: int) -> None:
    points = [CurvePoint(step=i, train_loss=1.0) for i in range(count)]
    thin = thin_curve(points)
    assert len(thin) == min(count, CURVE_LIMIT)
    assert [p.step for p in thin] == sorted({p.step for p in thin})
    if count:
        assert (thin[0], thin[-1]) == (points[0], points[-1])


def test_a_snapshot_survives_a_newer_trainer() -> None:
    # A newer trainer image may send fields that this operator does not know.
    snapshot = Snapshot.model_validate({"progress": {"stage": "Training", "step": 3, "moonPhase": "full"}, "novelty": 1})
    assert snapshot.progress == Progress(stage=Stage.TRAINING, step=3)


def test_a_snapshot_with_an_endless_curve_is_refused() -> None:
    points = [{"step": i} for i in range(CURVE_LIMIT + 1)]
    with pytest.raises(ValidationError):
        Snapshot.model_validate({"progress": {"stage": "Training"}, "curve": points})


def test_times_are_written_with_their_zone() -> None:
    progress = Progress(stage=Stage.TRAINING, last_update_time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert progress.to_json_dict()["lastUpdateTime"] == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize(
    ("code", "category"),
    [
        (ExitCode.DATA, Category.USER),
        (ExitCode.NON_FINITE_LOSS, Category.USER),
        (ExitCode.INTERRUPTED, Category.INFRASTRUCTURE),
        (137, Category.INFRASTRUCTURE),
    ],
)
def test_the_user_is_blamed_only_for_what_the_user_can_mend(code: int, category: Category) -> None:
    assert category_of(code) is category
