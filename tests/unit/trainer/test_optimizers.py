"""Optimizers: each trains, resumes bit by bit, and decays what it should."""

from pathlib import Path
from typing import Any

import pytest

from olivine_api.finetunejob import Optimizer, parse_spec
from olivine_trainer.errors import ConfigurationError
from tests.unit.trainer.support import adapter_bytes, kill_in_step, make_job, run_job, tone_rows, write_rows

ON_CPU = [one for one in Optimizer if one is not Optimizer.PAGED_ADAMW_8BIT]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", tone_rows(24))


@pytest.mark.parametrize("name", ON_CPU)
def test_every_optimizer_trains_and_a_resumed_run_is_the_same_run(
    tiny_model: Path, rows: Path, tmp_path: Path, name: Optimizer
) -> None:
    # Rank 64 on modules of 64 inputs: tensors of 4096 numbers, which bitsandbytes keeps in 8 bits. SGD needs a larger rate.
    changes = {
        "training__optimizer": name.value,
        "training__learningRate": 0.5 if name is Optimizer.SGD else 5e-3,
        "method__lora__rank": 64,
        "method__lora__alpha": 64,
    }
    whole = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/a", **changes), tmp_path / "0")
    assert whole.snapshot.metrics["evalLoss"] < whole.snapshot.baseline["evalLoss"]
    job = make_job(tiny_model, rows, f"file://{tmp_path}/b", **changes)
    kill_in_step(job, 5, tmp_path / "1")
    resumed = run_job(job, tmp_path / "2")
    assert resumed.snapshot.resumed_from_step == 3
    assert adapter_bytes(resumed) == adapter_bytes(whole)


def test_eight_bits_are_eight_bits(tiny_model: Path, rows: Path) -> None:
    import torch

    from olivine_trainer.loop.optimizers import make_optimizer, state_numbers, state_tensors

    layer = torch.nn.Linear(64, 64)
    training = parse_spec(make_job(tiny_model, rows, "s3://bucket", training__optimizer="adamw_8bit").spec.to_json_dict()).training
    optimizer = make_optimizer(layer, training)
    layer(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    tensors = state_tensors(optimizer, dict(layer.named_parameters()))
    assert tensors["weight|state1"].dtype == tensors["weight|state2"].dtype == torch.uint8
    assert state_numbers(optimizer, dict(layer.named_parameters())) == {"weight|step": 1, "bias|step": 1}


def test_a_paged_optimizer_needs_a_device_to_page_from(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__optimizer="paged_adamw_8bit")
    with pytest.raises(ConfigurationError, match=r"paged_adamw_8bit .* this pod has no such device: write adamw_8bit"):
        run_job(job, tmp_path / "scratch")


@pytest.mark.parametrize("name", ON_CPU)
def test_vectors_do_not_decay(tiny_model: Path, rows: Path, name: Optimizer) -> None:
    """Without a gradient's pull only decay moves a weight."""
    import torch

    from olivine_trainer.loop.optimizers import make_optimizer

    job = make_job(tiny_model, rows, "s3://bucket", training__optimizer=name.value, training__weightDecay=0.5)
    layer: Any = torch.nn.Linear(8, 8)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    optimizer = make_optimizer(layer, job.spec.training)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(layer.bias, before["bias"])
    assert torch.allclose(layer.weight, before["weight"] * (1 - 0.5 * job.spec.training.learning_rate), atol=1e-7)
