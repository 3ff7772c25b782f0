"""Training's invariants, on a tiny real model: exact resume, accumulation, masking, fencing, and what is published."""

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivine_api.finetunejob import Scheduler, Training
from olivine_api.reasons import Reason
from olivine_api.status import Stage
from olivine_trainer.data.batches import TokenisedRows
from olivine_trainer.errors import (
    ConfigurationError,
    InterruptedRunError,
    NonFiniteLossError,
    SupersededError,
)
from olivine_trainer.loop.claim import Claim, claim_run, open_run
from olivine_trainer.reporting.board import Board
from olivine_trainer.storage.checkpoints import prune_checkpoints, restore_newest
from olivine_trainer.storage.head import take_attempt
from olivine_trainer.storage.store import Store
from olivine_trainer.world.world import alone
from tests.support.models import likeliest
from tests.unit.trainer.support import (
    StopAt,
    adapter_bytes,
    artifact_folder,
    kill_in_step,
    make_job,
    run_job,
    tone_rows,
    write_rows,
)

STEPS = 8


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A whole run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return run_job(make_job(tiny_model, rows, f"file://{folder}/runs"), folder / "scratch")


@pytest.fixture
def killed(tiny_model: Path, rows: Path, tmp_path: Path) -> Any:
    """A run that was killed after 7 of 8 steps: checkpoints of the steps 3 and 6 are there."""
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs")
    kill_in_step(job, 7, tmp_path / "first")
    return job


def _run_folder(job: Any) -> Store:
    return open_run(job, {}).run


def test_a_killed_run_ends_in_the_same_bytes(tiny_model: Path, rows: Path, tmp_path: Path, uninterrupted: Any) -> None:
    """Dropout, accumulation, an epoch of 4.5 steps, a kill in the middle of a step drawn at random: not one byte differs."""
    step = random.randrange(1, STEPS)
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs")
    kill_in_step(job, step, tmp_path / "first")
    resumed = run_job(job, tmp_path / "second")
    where = f"killed in step {step}"
    assert resumed.snapshot.resumed_from_step == (3 * (step // 3) or None), where
    assert adapter_bytes(resumed) == adapter_bytes(uninterrupted), where
    assert resumed.snapshot.artifacts[0].digest == uninterrupted.snapshot.artifacts[0].digest
    assert resumed.snapshot.metrics == uninterrupted.snapshot.metrics
    assert resumed.snapshot.baseline == uninterrupted.snapshot.baseline
    assert resumed.snapshot.curve == uninterrupted.snapshot.curve
    assert resumed.attempt == 2


def test_an_interrupted_run_saves_between_steps_and_loses_nothing(
    tiny_model: Path, rows: Path, tmp_path: Path, uninterrupted: Any
) -> None:
    """Asked to go in the middle of a step: half a step is thrown away with its random numbers, what was done is saved."""
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs")

    class Ask(StopAt):
        def check(self) -> None:
            if board.snapshot.progress.step == 5:
                self.looks += 1
                self.requested = self.looks == 2  # before the second micro-batch of the sixth step
            super(StopAt, self).check()

    board = Board(None)
    with pytest.raises(InterruptedRunError, match="step 5 is saved") as caught:
        run_job(job, tmp_path / "first", stop=Ask(), board=board)
    assert (caught.value.exit_code, caught.value.step) == (40, 5)
    resumed = run_job(job, tmp_path / "second")
    assert resumed.snapshot.resumed_from_step == 5
    assert resumed.snapshot.lost_steps == 0
    assert adapter_bytes(resumed) == adapter_bytes(uninterrupted)


def test_a_repeated_pod_repeats_the_end(tiny_model: Path, rows: Path, tmp_path: Path, uninterrupted: Any) -> None:
    folder = Path(uninterrupted.snapshot.storage_uri.removeprefix("file://")).parents[2]
    before = sorted(str(path) for path in folder.rglob("*"))
    job = make_job(tiny_model, rows, f"file://{folder}")
    assert run_job(job, tmp_path / "again") == uninterrupted
    assert sorted(str(path) for path in folder.rglob("*")) == before


@pytest.mark.parametrize("damage", ["missing part", "torn part", "flipped byte", "no manifest"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(killed: Any, tmp_path: Path, uninterrupted: Any, damage: str) -> None:
    checkpoints = Path(_run_folder(killed).uri.removeprefix("file://")) / "checkpoints"
    newest = max(checkpoints.iterdir())
    assert newest.name == "step-00000006-a0001"
    if damage == "missing part":
        (newest / "optimizer.safetensors").unlink()
    elif damage == "torn part":
        content = (newest / "adapter.safetensors").read_bytes()
        (newest / "adapter.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        content = bytearray((newest / "adapter.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "adapter.safetensors").write_bytes(content)
    restored = restore_newest(_run_folder(killed), tmp_path / "look", spec_digest=killed.spec_digest)
    assert restored.status is not None
    assert restored.status.step == 3
    assert [str(skipped.name) for skipped in restored.skipped] == [newest.name]
    damaged = "adapter.safetensors is damaged"
    says = {"missing part": "optimizer.safetensors is missing", "torn part": damaged, "flipped byte": damaged}
    assert says.get(damage, "no manifest") in restored.skipped[0].why
    resumed = run_job(killed, tmp_path / "second")
    assert resumed.snapshot.resumed_from_step == 3
    assert adapter_bytes(resumed) == adapter_bytes(uninterrupted)


def test_what_was_lost_is_counted(killed: Any, tmp_path: Path) -> None:
    """Killed in the eighth step with 7 done, the first note of the attempt says 0, the checkpoint of step 6 says 6."""
    records = open_run(killed, {})
    noted = records.progress_before(2)
    assert noted is not None
    records.record_progress(1, noted.model_copy(update={"step": 7, "lost_steps": 2}))
    assert run_job(killed, tmp_path / "second").snapshot.lost_steps == 3


def test_a_superseded_attempt_writes_nothing_more(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """A pod of a lost node comes back after its successor has begun: it stops at the next manifest, before writing it."""
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs")
    run = _run_folder(job)
    listed: list[str] = []

    class Supersede(Board):
        def point(self, step: int, **values: Any) -> None:
            super().point(step, **values)
            if step == 2:
                take_attempt(run)
                listed.extend(item.key for item in run.list())

    with pytest.raises(SupersededError) as caught:
        run_job(job, tmp_path / "scratch", board=Supersede(None))
    assert caught.value.exit_code == 30
    assert caught.value.reason is Reason.SUPERSEDED
    assert [item.key for item in run.list()] == listed


def test_only_the_head_publishes_and_only_once(tiny_model: Path, rows: Path, tmp_path: Path, uninterrupted: Any) -> None:
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs")
    records = open_run(job, {})
    old = claim_run(job, records, Board(None))
    new = claim_run(job, records, Board(None))
    assert isinstance(old, Claim)
    assert isinstance(new, Claim)
    arguments: dict[str, Any] = {"spec_digest": "d", "input_digest": "i", "snapshot": uninterrupted.snapshot, "samples": []}
    with pytest.raises(SupersededError):
        records.publish(old.attempt, **arguments)
    assert records.published() is None
    assert records.publish(new.attempt, **arguments).attempt == 2
    with pytest.raises(SupersededError, match="published by another"):
        records.publish(new.attempt, **arguments)


def test_the_newest_checkpoints_are_kept_and_remains_are_swept(killed: Any) -> None:
    run = _run_folder(killed)
    attempt = take_attempt(run)
    run.put("checkpoints/step-00000007-a0001/adapter.safetensors", b"half")
    prune_checkpoints(run, attempt, keep=1)
    assert {item.key.split("/")[1] for item in run.list("checkpoints")} == {"step-00000006-a0001"}


def test_a_folder_of_another_specification_is_refused(killed: Any, tmp_path: Path) -> None:
    changed = killed.spec.model_copy(update={"training": killed.spec.training.model_copy(update={"learning_rate": 1e-5})})
    with pytest.raises(ConfigurationError, match="already holds a run of another specification"):
        run_job(type(killed)(spec=changed, identity=killed.identity), tmp_path / "second")


def test_the_published_adapter_is_peft_and_gives_the_same_logits(tiny_model: Path, uninterrupted: Any, tokenizer: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = artifact_folder(uninterrupted)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["base_model_name_or_path"] == f"file://{tiny_model}"
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), str(folder)).eval()
    # The run's own samples are the reference: plain peft must find the same label the likeliest answer.
    for sample in uninterrupted.samples:
        assert likeliest(loaded, tokenizer, sample.prompt, [f" {tone}" for tone in ("joy", "anger", "fear")]) == sample.tuned


def test_an_artifacts_manifest_names_its_base(tiny_model: Path, uninterrupted: Any) -> None:
    """Whoever gathers adapters tells a base from another of the same shapes by it."""
    told = json.loads((artifact_folder(uninterrupted) / "manifest.json").read_text())
    assert told["modelUri"] == f"file://{tiny_model}"
    assert told["modelDigest"] == uninterrupted.snapshot.resolved.model.digest
    assert len(told["modelDigest"]) == 64


def test_the_snapshot_tells_all(uninterrupted: Any) -> None:
    snapshot = uninterrupted.snapshot
    assert set(snapshot.metrics) == {"trainLoss", "evalLoss", "accuracy", "f1"}
    assert set(snapshot.baseline) == {"evalLoss", "accuracy", "f1"}
    assert snapshot.metrics["evalLoss"] < snapshot.baseline["evalLoss"]
    assert (snapshot.progress.step, snapshot.progress.percent, snapshot.progress.stage) == (STEPS, 100, Stage.PUBLISHING)
    assert (snapshot.resolved.effective_batch_size, snapshot.resolved.precision, snapshot.resolved.world_size) == (4, "fp32", 1)
    assert snapshot.resolved.data.rows + snapshot.resolved.data.validation_rows == 24
    assert [point.step for point in snapshot.curve] == list(range(1, STEPS + 1))
    assert snapshot.peak_memory_bytes
    assert snapshot.checkpoint is None  # keepAfterSuccess is 0
    assert len(uninterrupted.samples) == 2
    assert all(sample.base is not None and sample.tuned is not None for sample in uninterrupted.samples)


def test_evaluation_in_between_steers_and_survives_a_kill(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """A schedule that follows the validation loss, best and curve: all of it is part of the state."""
    changes: dict[str, Any] = {
        "evaluation__everySteps": 2,
        "training__scheduler": "reduce_lr_on_plateau",
        "training__schedulerParameters": {"patience": 0, "factor": 0.5, "threshold": 1.0},
        "training__warmupSteps": 0,
    }
    whole = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/a", **changes), tmp_path / "whole")
    job = make_job(tiny_model, rows, f"file://{tmp_path}/b", **changes)
    kill_in_step(job, 7, tmp_path / "first")
    resumed = run_job(job, tmp_path / "second")
    assert adapter_bytes(resumed) == adapter_bytes(whole)
    assert resumed.snapshot.best == whole.snapshot.best
    assert [point.eval_loss is not None for point in resumed.snapshot.curve] == [step % 2 == 0 for step in range(1, 9)]


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its precision for the process's life, as a worker does."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("text", {"data__template": {"text": "{phrase} is {tone}"}, "data__lossOn": "All", "task": "Generation"}),
        ("messages", {"data__template": {"messages": "chat"}, "task": "Instruction", "training__gradientCheckpointing": True}),
        ("no validation", {"data__validationFraction": None, "data__stratifyBy": None}),
        ("bf16", {"training__precision": "bf16", "task": "Generation"}),
    ],
)
def test_other_forms_of_data_train_too(tiny_model: Path, tmp_path: Path, form: str, changes: dict[str, Any]) -> None:
    rows = [
        {**row, "chat": [{"role": "user", "content": row["phrase"]}, {"role": "assistant", "content": row["tone"]}]}
        for row in tone_rows(24)
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    job = make_job(tiny_model, path, f"file://{tmp_path}/runs", training__maxSteps=2, **changes)
    snapshot = run_job(job, tmp_path / "scratch").snapshot
    if form == "no validation":
        assert (set(snapshot.metrics), snapshot.baseline) == ({"trainLoss"}, {})
    else:
        assert snapshot.resolved.precision == ("bf16" if form == "bf16" else "fp32")
        assert set(snapshot.metrics) == {"trainLoss", "evalLoss", "perplexity"}
        assert math.isclose(snapshot.metrics["perplexity"], math.exp(snapshot.metrics["evalLoss"]))


def _engine(tiny_model: Path, rows: Path, **changes: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from olivine_trainer.loop.engine import build_engine, make_accelerator
    from olivine_trainer.modeling.precision import resolve_precision

    spec = make_job(tiny_model, rows, "file:///nowhere", method__lora__dropout=0.0, **changes).spec
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    base.requires_grad_(False)
    precision = resolve_precision(spec.training.precision)
    batch = spec.training.batch_size * spec.training.gradient_accumulation_steps
    world = alone()
    return build_engine(spec, base, make_accelerator(precision, world), world, total_steps=STEPS, effective_batch=batch, pad_id=1)


def _step(engine: Any, examples: list[Any], step: int) -> Any:
    """One optimizer step that nothing disturbs."""
    return engine.train_step(TokenisedRows(examples), step, engine.training.batch_size, lambda *_, **__: None)


def _examples(rows: Path, tokenizer: Any) -> list[Any]:
    from olivine_api.finetunejob import LossOn
    from olivine_trainer.data.tokens import completion_example

    fields = [json.loads(line) for line in rows.read_text().splitlines()]
    return [completion_example(tokenizer, row["phrase"], f" {row['tone']}", loss_on=LossOn.ALL) for row in fields]


def test_accumulation_changes_nothing(tiny_model: Path, rows: Path, tokenizer: Any) -> None:
    """Batch 1 x accumulation 8 is batch 8 x 1, though rows differ in length: the mean is over tokens, not over micro-batches."""
    import torch

    from olivine_trainer.methods.method import trainable

    examples = _examples(rows, tokenizer)
    losses, weights = [], []
    for batch, accumulation in ((8, 1), (1, 8), (4, 2)):
        engine = _engine(tiny_model, rows, training__batchSize=batch, training__gradientAccumulationSteps=accumulation)
        losses.append([_step(engine, examples, step).loss for step in range(3)])
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainable(engine.model).values()]))
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(losses[2], losses[0], atol=1e-6, rtol=0)
    # AdamW divides by the gradient's size, which amplifies rounding where the gradient is nearly zero.
    assert (weights[1] - weights[0]).abs().max() < 1e-4


def test_the_head_on_learned_positions_gives_the_whole_forwards_loss(tiny_model: Path, rows: Path, tokenizer: Any) -> None:
    import torch
    from torch import nn

    from olivine_trainer.modeling.forward import SummedLoss, can_split_head, collate

    engine = _engine(tiny_model, rows)
    assert engine.loss.split_head
    batch = collate(_examples(rows, tokenizer)[:5], 1, torch.device("cpu"))
    engine.loss.eval()
    split = engine.loss(batch)
    whole = SummedLoss(engine.model, engine.causal, split_head=False).eval()(batch)
    assert torch.isclose(split, whole, rtol=1e-6)

    class Scaled(nn.Module):
        """A model that scales its logits after the head, as some do."""

        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.base_model = inner.base_model
            self.head = inner.get_output_embeddings()
            self.inner = inner

        def get_output_embeddings(self) -> Any:
            return self.head

        def forward(self, **inputs: Any) -> Any:
            output = self.inner(**inputs)
            output.logits = output.logits * 0.5
            return output

    assert not can_split_head(Scaled(engine.causal))


def test_plain_peft_computes_the_trained_models_logits(tiny_model: Path, rows: Path, tokenizer: Any, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from olivine_trainer.methods.method import About

    engine = _engine(tiny_model, rows, method__lora__rsLora=True)
    examples = _examples(rows, tokenizer)
    for step in range(3):
        _step(engine, examples, step)
    engine.method.export(tmp_path / "one", About("s3://models/tiny", tokenizer=None))
    engine.method.export(tmp_path / "two", About("s3://models/tiny", tokenizer=None))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode("Phrase: ha ha 12\nTone:")])
    with torch.no_grad():
        untuned = base(ids).logits
        plain = PeftModel.from_pretrained(base, str(tmp_path / "one")).eval()(ids).logits
        ours = engine.model.eval()(ids).logits
    assert torch.equal(plain, ours)
    assert (plain - untuned).abs().max() > 1e-3  # the adapter does something


def test_a_run_on_s3_resumes_to_the_same_bytes(tiny_model: Path, rows: Path, tmp_path: Path, s3: Any, uninterrupted: Any) -> None:
    """Model, rows and storage in a real object store; the bytes are those of the run on files, but for the base's address."""
    store = Store(s3.access("s3://bucket/sources"))
    for path in (*tiny_model.iterdir(), rows):
        store.put(f"{'model' if path != rows else 'data'}/{path.name}", path)
    environ = {
        "OLIVINE_STORAGE_AWS_ACCESS_KEY_ID": s3.key,
        "OLIVINE_STORAGE_AWS_SECRET_ACCESS_KEY": s3.secret,
        "OLIVINE_STORAGE_AWS_ENDPOINT_URL": s3.endpoint,
    }
    job = make_job(
        tiny_model,
        rows,
        f"s3://bucket/{tmp_path.name}",
        model__uri="s3://bucket/sources/model",
        data__train__uri=f"s3://bucket/sources/data/{rows.name}",
    )
    kill_in_step(job, 4, tmp_path / "first", environ)
    resumed = run_job(job, tmp_path / "second", environ=environ)
    assert resumed.snapshot.resumed_from_step == 3
    artifact = Store(s3.access(resumed.snapshot.artifacts[0].uri))
    weights = artifact.get("adapter_model.safetensors")
    assert weights is not None
    assert weights.data == adapter_bytes(uninterrupted)
    assert run_job(job, tmp_path / "third", environ=environ) == resumed


def test_a_loss_that_is_no_number_ends_the_run(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", training__learningRate=10, training__maxGradNorm=1000)
    import torch

    from olivine_trainer.loop import engine as engines

    real = engines.SummedLoss.forward
    calls = 0

    def poisoned(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        value = real(self, *arguments)
        calls += self.training
        return value * torch.tensor(float("nan")) if calls > 5 and self.training else value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines.SummedLoss, "forward", poisoned)
        with pytest.raises(NonFiniteLossError, match="the loss of step 3 is not finite") as caught:
            run_job(job, tmp_path / "scratch")
    assert (caught.value.exit_code, caught.value.step) == (21, 3)


def test_target_modules_that_do_not_exist_are_told_with_those_that_do(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", method__lora__targetModules=["q_proj", "query"])
    with pytest.raises(
        ConfigurationError, match=r"names query, which this model does not have; .* down_proj, gate_proj, k_proj"
    ) as caught:
        run_job(job, tmp_path / "scratch")
    assert caught.value.reason is Reason.TARGET_MODULES_NOT_FOUND


_PARAMETERS: dict[Scheduler, dict[str, Any]] = {
    Scheduler.COSINE_WITH_MIN_LR: {"min_lr": 1e-4},
    Scheduler.COSINE_WARMUP_WITH_MIN_LR: {"min_lr_rate": 0.1},
    Scheduler.COSINE_WITH_RESTARTS: {"num_cycles": 2},
    Scheduler.WARMUP_STABLE_DECAY: {"num_decay_steps": 3},
    Scheduler.GREEDY: {"patience": 2, "min_lr": 1e-5},
    Scheduler.REDUCE_LR_ON_PLATEAU: {"patience": 1},
}


def _optimizer() -> Any:
    import torch

    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, 2))], lr=1e-2)


@pytest.mark.parametrize("name", list(Scheduler))
def test_every_schedule_runs_and_resumes_through_json(name: Scheduler) -> None:
    from olivine_trainer.loop.schedule import Schedule

    training = Training(max_steps=10, learning_rate=1e-2, scheduler=name, scheduler_parameters=_PARAMETERS.get(name))

    def walk(schedule: Schedule, steps: range) -> list[float]:
        rates = []
        for step in steps:
            schedule._optimizer.step()
            schedule.step()
            schedule.observe(1.0 + 0.1 * (step % 3))
            rates.append(schedule.learning_rate)
        return rates

    whole = walk(Schedule(training, _optimizer(), 10), range(10))
    first = Schedule(training, _optimizer(), 10)
    start = walk(first, range(4))
    second = Schedule(training, _optimizer(), 10)
    second.restore(json.loads(json.dumps(first.state())))
    assert start + walk(second, range(4, 10)) == whole


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (
            "cosine",
            {"scheduler_parameters": {"cycles": 2}},
            "names cycles, which scheduler cosine does not have: it takes num_cycles",
        ),
        ("constant", {"scheduler_parameters": {"num_cycles": 2}}, "it takes none"),
        ("constant", {"warmup_steps": 2}, "scheduler constant has no warm-up"),
        ("warmup_stable_decay", {}, "does not suit scheduler warmup_stable_decay: .*num_decay_steps"),
        ("polynomial", {"scheduler_parameters": {"lr_end": 1.0}}, "does not suit scheduler polynomial"),
        ("linear", {"max_steps": None, "epochs": 1.0, "warmup_steps": 11}, "is 11, but training has 10 steps in all"),
        ("polynomial", {"warmup_steps": 10}, "is 10, but training has 10 steps in all: lower training.warmupSteps to 9 or less"),
        (
            "cosine",
            {"scheduler_parameters": {"num_cycles": "two"}},
            "suit scheduler cosine: num_cycles is 'two', it must be a finite number",
        ),
        ("polynomial", {"scheduler_parameters": {"power": "x"}}, "suit scheduler polynomial: power is 'x'"),
        ("reduce_lr_on_plateau", {"scheduler_parameters": {"patience": "x"}}, "patience is 'x'"),
        ("reduce_lr_on_plateau", {"scheduler_parameters": {"cooldown": "x"}}, "cooldown is 'x'"),
        (
            "warmup_stable_decay",
            {"scheduler_parameters": {"num_decay_steps": 3, "decay_type": "slow"}},
            "Unknown decay type: slow",
        ),
        ("inverse_sqrt", {"scheduler_parameters": {"timescale": 0}}, "suit scheduler inverse_sqrt: .*division"),
        ("inverse_sqrt", {"scheduler_parameters": {"timescale": -7}}, "after step 7 of 10 cannot be computed"),
        ("polynomial", {"scheduler_parameters": {"power": -1}}, "after step 10 of 10 cannot be computed"),
        ("polynomial", {"scheduler_parameters": {"lr_end": -1}}, "after step 1 of 10 would be -0.0"),
        ("cosine_with_min_lr", {"scheduler_parameters": {"min_lr_rate": math.inf}}, "min_lr_rate is inf"),
        (
            "cosine_with_min_lr",
            {"learning_rate": 10, "scheduler_parameters": {"min_lr_rate": 1e308}},
            r"after step \d of 10 would be inf, it must be a finite number from 0",
        ),
        ("greedy", {"scheduler_parameters": {"factor": 0}}, "suit scheduler greedy: .*division"),
        ("reduce_lr_on_plateau", {"scheduler_parameters": {"factor": -1, "min_lr": -1}}, "after a measured loss would be -0.01"),
        ("greedy", {"learning_rate": 1e-4}, r"write training\.schedulerParameters\.min_lr"),
    ],
)
def test_a_bad_schedule_parameter_is_named(name: str, changes: dict[str, Any], says: str) -> None:
    from olivine_trainer.loop.schedule import Schedule

    training = Training.model_validate({"max_steps": 10, "learning_rate": 1e-2, "scheduler": name, **changes})
    with pytest.raises(ConfigurationError, match=says):
        Schedule(training, _optimizer(), 10)


def test_a_schedule_that_gives_complex_rates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import optimization

    from olivine_trainer.loop.schedule import Schedule

    monkeypatch.setattr(optimization, "_get_linear_schedule_with_warmup_lr_lambda", lambda step, **_: (0.5 - step) ** 0.5)
    training = Training(max_steps=10, learning_rate=1e-2, scheduler=Scheduler.LINEAR)
    with pytest.raises(ConfigurationError, match=r"does not suit scheduler linear: .* after step 1 of 10 would be .*j"):
        Schedule(training, _optimizer(), 10)


def test_what_is_not_marked_gpu_sees_no_cuda_device() -> None:
    """The promises are the CPU's (fp32, bit-exact), and must hold on a machine with a CUDA device too: here and in workers."""
    import os

    import torch

    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()


def test_a_model_without_a_tokenizer_is_told(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    from olivine_trainer.errors import ModelError

    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, folder / name)
    with pytest.raises(ModelError, match=r"tokenizer of model\.uri"):
        run_job(make_job(folder, rows, f"file://{tmp_path}/runs"), tmp_path / "scratch")
    (folder / "config.json").write_text('{"model_type": "nobody-knows"}')
    with pytest.raises(ModelError) as caught:
        run_job(make_job(folder, rows, f"file://{tmp_path}/other"), tmp_path / "scratch")
    assert caught.value.exit_code == 12
