"""What training uses: the estimate before the first step against the peak, and what the metrics say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from olivine_trainer.storage.records import Published
from tests.support.models import VOCABULARY, make_tokenizer
from tests.unit.trainer.support import adapter_bytes, make_job, run_job, tone_rows, write_rows


@pytest.fixture(scope="module")
def middling_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 million parameters: large enough that gradients and optimizer state stand out from what the process holds anyway."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("middling")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def train_apart(job: Any, folder: Path) -> Published:
    """In processes of its own: a process's peak never falls."""
    spec = folder / "job.json"
    spec.write_text(json.dumps(job.spec.to_json_dict()))
    environment = {**os.environ, "OLIVINE_CPU_LIMIT": "1", "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "olivine_trainer", "--spec", str(spec), "--name", "tone", "--uid", "u1"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:] + ran.stdout[-3000:]
    (record,) = (folder / "runs").rglob("published.json")
    return Published.model_validate_json(record.read_text())


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_memory_is_estimated_within_15_percent_before_the_first_step(middling_model: Path, tmp_path: Path, method: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    changes: dict[str, Any] = {"method__type": method} | ({"method__lora": None} if method == "Full" else {})
    job = make_job(middling_model, rows, f"file://{tmp_path}/runs", training__maxSteps=3, evaluation__samples=0, **changes)
    published = train_apart(job, tmp_path)
    estimate, peak = published.snapshot.estimate, published.snapshot.peak_memory_bytes
    assert estimate is not None
    assert peak
    assert estimate.memory_bytes == pytest.approx(peak, rel=0.15), (method, estimate.memory_bytes >> 20, peak >> 20)


def test_metrics_say_how_busy_the_machine_was(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    published = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/runs"), tmp_path / "scratch")
    used = published.snapshot.utilization
    assert used is not None
    assert used.cpu is not None
    assert 0 < used.cpu <= 1
    assert used.input is not None
    assert 0 <= used.input < 0.9
    assert used.gpu is None
    lines = [json.loads(line) for path in (tmp_path / "runs").rglob("metrics-*.jsonl") for line in path.read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 8
    assert all(line["tokensPerSecond"] > 0 and line["peakMemoryBytes"] > 0 and 0 < line["cpuUtilization"] <= 1 for line in steps)


def test_the_probe_step_changes_no_byte(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from olivine_trainer.loop import train

    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    with_probe = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/a"), tmp_path / "0")
    monkeypatch.setattr(train, "_estimate", lambda *_: None)
    without = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/b"), tmp_path / "1")
    assert with_probe.snapshot.estimate is not None
    assert without.snapshot.estimate is None
    assert adapter_bytes(with_probe) == adapter_bytes(without)


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adamw_8bit"])
def test_the_optimizers_state_is_as_large_as_foretold(tiny_model: Path, tmp_path: Path, name: str) -> None:
    import torch

    from olivine_api.finetunejob import Optimizer
    from olivine_trainer.loop.optimizers import make_optimizer, present_bytes, state_bytes

    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    training = make_job(tiny_model, rows, "s3://bucket", training__optimizer=name).spec.training
    layer = torch.nn.Linear(300, 200)
    parameters = dict(layer.named_parameters())
    optimizer = make_optimizer(layer, training)
    assert present_bytes(optimizer, parameters) == 0
    layer(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    # Besides counters and, in 8 bits, tables of 2 KiB.
    assert state_bytes(Optimizer(name), parameters) == pytest.approx(present_bytes(optimizer, parameters), abs=2200)
