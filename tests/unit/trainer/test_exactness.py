"""The long matrix of exact resumes: every step, every kind of schedule, each with what moves it."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.support import adapter_bytes, kill_in_step, make_job, run_job, tone_rows, write_rows

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

STEPS = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "warm-up and cosine": {},
    "one micro-batch a step": {"training__gradientAccumulationSteps": 1, "training__batchSize": 4},
    "many small micro-batches": {"training__gradientAccumulationSteps": 4, "training__batchSize": 1},
    "a schedule led by the validation loss": {
        "training__scheduler": "reduce_lr_on_plateau",
        "training__schedulerParameters": {"patience": 0, "factor": 0.5},
        "training__warmupSteps": 0,
        "evaluation__everySteps": 2,
    },
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


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_kill_in_any_step_changes_no_byte(tiny_model: Path, rows: Path, tmp_path: Path, variant: str) -> None:
    changes = VARIANTS[variant]
    calm = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/calm", **changes), tmp_path / "calm-scratch")
    assert calm.snapshot.progress.step == STEPS
    for step in range(STEPS):
        job = make_job(tiny_model, rows, f"file://{tmp_path}/killed-{step}", **changes)
        kill_in_step(job, step, tmp_path / f"first-{step}")
        resumed = run_job(job, tmp_path / f"second-{step}")
        assert adapter_bytes(resumed) == adapter_bytes(calm), f"killed in step {step}"
        assert resumed.snapshot.metrics == calm.snapshot.metrics, f"killed in step {step}"
