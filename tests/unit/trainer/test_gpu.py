"""What is different on a CUDA device. Skipped where there is none."""

from pathlib import Path

import pytest

from tests.unit.trainer.support import kill_in_step, make_job, run_job, tone_rows, write_rows

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")


def test_auto_trains_in_bf16_and_learns(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__maxSteps=30, training__learningRate=2e-2)
    published = run_job(job, tmp_path / "scratch")
    snapshot = published.snapshot
    assert snapshot.resolved.precision == "bf16"
    assert snapshot.metrics["evalLoss"] < snapshot.baseline["evalLoss"]


def test_a_stopped_run_goes_on_from_its_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    # Bit-equality is promised for the CPU in fp32; here the resumed run has to end as well as the calm one.
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    calm = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/calm"), tmp_path / "calm-scratch")
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs")
    kill_in_step(job, 5, tmp_path / "first")
    resumed = run_job(job, tmp_path / "second")
    assert resumed.snapshot.resumed_from_step == 3
    assert resumed.snapshot.metrics["evalLoss"] == pytest.approx(calm.snapshot.metrics["evalLoss"], rel=0.02)
