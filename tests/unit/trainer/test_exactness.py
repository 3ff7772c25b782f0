"""Exact resumes: every method, one process and two, killed at any step; and the invariants of a step.

The core draws one kill step for each; marked full: every step, every kind of schedule, each with what moves it.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivine_api.status import Snapshot
from tests.unit.trainer.faulty import SignalIn
from tests.unit.trainer.ranks import Ranks
from tests.unit.trainer.support import kill_in_step, make_job, run_job, tone_rows, write_rows

pytestmark = pytest.mark.timeout(900)

STEPS = 8
# 18 training rows in steps of 4: every epoch ends within a step, and each kill is in the middle of one.
METHODS: dict[str, dict[str, Any]] = {
    "Full": {"method": {"type": "Full"}, "training__learningRate": 1e-3},
    "LoRA": {},
    "QLoRA": {"method__type": "QLoRA"},
    "Adapter": {"method": {"type": "Adapter", "adapter": {"bottleneck": 8}}},
    "QLoRA, int8": {"method__type": "QLoRA", "method__quantization": {"bits": 8, "type": "int8"}},
}
# What a step leaves behind, beside weights: measured losses that move the rate, and the best of them.
EVALUATED: dict[str, Any] = {
    "training__scheduler": "reduce_lr_on_plateau",
    "training__schedulerParameters": {"patience": 0, "factor": 0.5},
    "training__warmupSteps": 0,
    "evaluation__everySteps": 2,
}
# No evaluation is better by so much: the first one's weights are published, kept in every checkpoint since.
STOPPING: dict[str, Any] = {
    "training__earlyStopping": {"metric": "eval_loss", "mode": "min", "patience": 3, "minDelta": 100.0},
    "evaluation__everySteps": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "warm-up and cosine": {},
    "one micro-batch a step": {"training__gradientAccumulationSteps": 1, "training__batchSize": 4},
    "many small micro-batches": {"training__gradientAccumulationSteps": 4, "training__batchSize": 1},
    "packed rows": {"data__packing": True},
    "rows of a length together": {"training__groupByLength": True},
    "a schedule led by the validation loss": EVALUATED,
    "early stopping": STOPPING,
    "a schedule led by the training loss": {
        "training__scheduler": "reduce_lr_on_plateau",
        "training__schedulerParameters": {"patience": 0, "factor": 0.5},
        "training__warmupSteps": 0,
    },
    "epochs, all linear modules, recomputed activations": {
        "training__maxSteps": None,
        "training__epochs": 1.75,
        "training__gradientCheckpointing": True,
        "method__lora__dropout": 0.3,
    },
}


def _marked(core: set[str]) -> list[Any]:
    """All methods; marked full but for `core`."""
    return [pytest.param(name, marks=[] if name in core else [pytest.mark.full]) for name in METHODS]


_CORE = _marked(set(METHODS) - {"QLoRA, int8"})


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path / "ranks", {})
    yield ranks
    ranks.close()


def same(resumed: Snapshot, calm: Snapshot, where: str) -> None:
    """Not one byte of the artifact differs, nor a digit of what was measured on the way."""
    assert resumed.progress.step == calm.progress.step == STEPS, where
    assert [artifact.digest for artifact in resumed.artifacts] == [artifact.digest for artifact in calm.artifacts], where
    assert (resumed.metrics, resumed.baseline, resumed.best, resumed.curve) == (
        calm.metrics,
        calm.baseline,
        calm.best,
        calm.curve,
    ), where


def check_kills(model: Path, rows: Path, folder: Path, changes: dict[str, Any], steps: list[int]) -> None:
    """A kill in each of `steps`, each in a run of its own, in one process."""
    calm = run_job(make_job(model, rows, f"file://{folder}/calm", **changes), folder / "calm-scratch")
    for step in steps:
        job = make_job(model, rows, f"file://{folder}/killed-{step}", **changes)
        kill_in_step(job, step, folder / f"first-{step}")
        same(run_job(job, folder / f"second-{step}").snapshot, calm.snapshot, f"killed in step {step}")


@pytest.mark.parametrize("method", _CORE)
def test_a_kill_in_a_drawn_step_changes_no_byte(tiny_model: Path, rows: Path, tmp_path: Path, method: str) -> None:
    """Mid-epoch, between micro-batches, across evaluations that move the learning rate."""
    check_kills(tiny_model, rows, tmp_path, METHODS[method] | EVALUATED, [random.randrange(3, STEPS)])


def test_early_stopping_goes_on_where_it_was(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Best value, patience and the best weights themselves, killed after the first evaluation and before the last."""
    check_kills(tiny_model, rows, tmp_path, STOPPING, [random.randrange(3, STEPS)])


@pytest.mark.full
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS)
def test_a_kill_in_any_step_changes_no_byte(tiny_model: Path, rows: Path, tmp_path: Path, method: str, variant: str) -> None:
    changes = dict(VARIANTS[variant])
    if method != "LoRA":
        changes.pop("method__lora__dropout", None)
    check_kills(tiny_model, rows, tmp_path, METHODS[method] | changes, list(range(STEPS)))


def check_two_ranks(ranks: Ranks, sources: tuple[Path, Path], folder: Path, changes: dict[str, Any], steps: list[int]) -> None:
    """As `check_kills`, by two processes: now rank 0 is killed, now rank 1."""
    model, rows = sources
    calm = ranks.run(make_job(model, rows, f"file://{folder}/calm", **changes))[0].end().snapshot
    assert calm is not None
    assert calm.resolved is not None
    assert calm.resolved.world_size == 2
    for step in steps:
        job = make_job(model, rows, f"file://{folder}/killed-{step}", **changes)
        for rank in ranks.start(job, faults={step % 2: SignalIn(step)}):
            assert rank.code() != 0
        resumed = ranks.run(job)[0].end().snapshot
        assert resumed is not None
        same(resumed, calm, f"rank {step % 2} killed in step {step}")


@pytest.mark.parametrize("method", _marked({"Full"}))
def test_two_processes_resume_to_the_same_bytes(ranks: Ranks, tiny_model: Path, rows: Path, tmp_path: Path, method: str) -> None:
    """LoRA's short form, on a real S3, is in test_world."""
    check_two_ranks(ranks, (tiny_model, rows), tmp_path, METHODS[method] | EVALUATED, [random.randrange(3, STEPS)])


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_killed_in_any_step_change_no_byte(
    ranks: Ranks, tiny_model: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    check_two_ranks(ranks, (tiny_model, rows), tmp_path, METHODS[method] | EVALUATED, list(range(STEPS)))


@pytest.mark.parametrize("method", _CORE)
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(
    tiny_model: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    def digest(name: str, seed: int) -> str:
        changes = METHODS[method] | {"training__seed": seed, "training__maxSteps": 3}
        job = make_job(tiny_model, rows, f"file://{tmp_path}/{name}", **changes)
        return run_job(job, tmp_path / f"{name}-scratch").snapshot.artifacts[0].digest

    one, again, other = digest("one", 1), digest("again", 1), digest("other", 2)
    assert one == again != other


@pytest.mark.parametrize("method", _CORE)
def test_the_division_into_micro_batches_changes_nothing(tiny_model: Path, rows: Path, tmp_path: Path, method: str) -> None:
    """Batch 1 x accumulation 8 is batch 8 x 1 is packed: the mean is over the step's tokens, whoever computes them in what portions."""
    divisions: dict[str, dict[str, Any]] = {
        "8 x 1": {"training__batchSize": 8, "training__gradientAccumulationSteps": 1},
        "1 x 8": {"training__batchSize": 1, "training__gradientAccumulationSteps": 8},
        "packed": {"training__batchSize": 8, "training__gradientAccumulationSteps": 1, "data__packing": True},
    }
    losses: dict[str, list[float]] = {}
    for name, division in divisions.items():
        changes = METHODS[method] | division | {"training__maxSteps": 4}
        if "LoRA" in method:  # dropout masks are drawn for the portions
            changes["method__lora__dropout"] = 0.0
        published = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/{name[0]}", **changes), tmp_path / f"{name[0]}-scratch")
        losses[name] = [point.train_loss or 0.0 for point in published.snapshot.curve]
        assert len(losses[name]) == 4
    for name in ("1 x 8", "packed"):
        # The first step sees the same weights; AdamW then amplifies rounding where a gradient is nearly zero.
        np.testing.assert_allclose(losses[name][:1], losses["8 x 1"][:1], rtol=5e-6, err_msg=name)
        np.testing.assert_allclose(losses[name], losses["8 x 1"], rtol=1e-4, err_msg=name)
