"""Packing: several rows in a sequence, isolated; the training is the padded one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivine_trainer.errors import ConfigurationError
from tests.support.models import FAMILIES, make_tiny
from tests.unit.trainer.support import adapter_bytes, kill_in_step, make_job, run_job, tone_rows, write_rows


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


def examples(rows: Path, tokenizer: Any) -> list[Any]:
    from olivine_api.data import LossOn
    from olivine_trainer.data.tokens import completion_example

    fields = [json.loads(line) for line in rows.read_text().splitlines()]
    return [completion_example(tokenizer, row["phrase"], f" {row['tone']}", loss_on=LossOn.ALL) for row in fields]


def test_bins_hold_each_row_once_and_are_evenly_filled() -> None:
    from olivine_trainer.modeling.packing import bins

    assert bins([20, 40, 30]) == [[1, 2, 0]]  # one sequence: no padding at all
    lengths = [300, 200, 250, 100, 90, 60]
    groups = bins(lengths)
    assert sorted(row for group in groups for row in group) == list(range(6))
    assert sorted(sum(lengths[row] for row in group) for group in groups) == [490, 510]
    assert [len(group) for group in bins([2000, 2000, 2000])] == [1, 1, 1]


def test_packed_rows_have_the_logits_of_each_alone(tiny_model: Path, rows: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from olivine_trainer.modeling.forward import collate, learned_logits

    causal = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    some = examples(rows, tokenizer)[:7]
    packed = collate(some, 1, torch.device("cpu"), packed=True)
    assert packed.ids.shape[0] == 1
    assert packed.tokens == packed.ids.numel()  # no padding
    order = np.argsort([-len(one.ids) for one in some], kind="stable")
    with torch.no_grad():
        for split in (True, False):
            logits = learned_logits(causal, packed.ids, packed.mask, packed.positions, split_head=split, places=packed.places)
            alone = [collate([some[row]], 1, torch.device("cpu")) for row in order]
            wanted = torch.cat([learned_logits(causal, one.ids, one.mask, one.positions, split_head=split) for one in alone])
            assert torch.equal(packed.labels, torch.cat([one.labels for one in alone]))
            assert (logits - wanted).abs().max() < 1e-5


def test_packed_training_is_padded_training(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Steps, batches and losses are the same; only padding is gone."""
    runs = []
    for packing in (False, True):
        job = make_job(
            tiny_model,
            rows,
            f"file://{tmp_path}/{packing}",
            data__packing=packing,
            method__lora__dropout=0.0,
            training__batchSize=4,
        )
        runs.append(run_job(job, tmp_path / f"scratch-{packing}"))
    padded, packed = (run.snapshot for run in runs)
    assert packed.progress.step == padded.progress.step == 8
    assert packed.progress.trained_tokens == padded.progress.trained_tokens
    losses = [[point.train_loss for point in snapshot.curve if point.train_loss is not None] for snapshot in (padded, packed)]
    assert len(losses[0]) == 8
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5, rtol=0)
    assert abs(packed.metrics["evalLoss"] - padded.metrics["evalLoss"]) < 1e-5


def test_a_packed_run_that_was_killed_ends_in_the_same_bytes(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    changes = {"data__packing": True, "training__maxSteps": 5}
    calm = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/calm", **changes), tmp_path / "calm-scratch")
    job = make_job(tiny_model, rows, f"file://{tmp_path}/killed", **changes)
    kill_in_step(job, 4, tmp_path / "first")
    assert adapter_bytes(run_job(job, tmp_path / "second")) == adapter_bytes(calm)


def test_a_model_that_mixes_packed_rows_is_refused(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with its own attention would: place numbers move positions, but hide nothing."""
    import torch
    from transformers import AutoModelForCausalLM

    from olivine_trainer.modeling.packing import keeps_rows_apart

    causal = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert keeps_rows_apart(causal)
    real = type(causal).forward

    def forward(self: Any, *arguments: Any, **inputs: Any) -> Any:
        return real(self, *arguments, **(inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}))

    monkeypatch.setattr(type(causal), "forward", forward)
    assert not keeps_rows_apart(causal)
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", data__packing=True)
    with pytest.raises(ConfigurationError, match=r"data\.packing is true, but LlamaForCausalLM lets packed rows see one another"):
        run_job(job, tmp_path / "scratch")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_of_every_family_are_kept_apart_or_refused(family: str, tmp_path: Path, rows: Path, tokenizer: Any) -> None:
    """Learned positions, sliding windows, biases: packed losses are the padded ones wherever packing is let through."""
    import torch
    from transformers import AutoModelForCausalLM

    from olivine_trainer.modeling.forward import SummedLoss, collate
    from olivine_trainer.modeling.packing import keeps_rows_apart

    causal = AutoModelForCausalLM.from_pretrained(make_tiny(family, tmp_path / family), dtype=torch.float32).eval()
    assert keeps_rows_apart(causal)
    loss = SummedLoss(causal, causal, split_head=False).eval()
    some = examples(rows, tokenizer)[:6]
    with torch.no_grad():
        padded, packed = (float(loss(collate(some, 1, torch.device("cpu"), packed=packed))) for packed in (False, True))
    assert packed == pytest.approx(padded, rel=1e-5)
