"""What must not end a run, or not as the user's fault: exhausted memory, failing disks, writes that are only convenient."""

import contextlib
import errno
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from olivine_api.reasons import Reason
from olivine_trainer.errors import (
    DataError,
    ModelError,
    OutOfMemoryError,
    StorageUnavailableError,
    SupersededError,
    TrainerError,
)
from olivine_trainer.loop.stop import AskedToGo, StopFlag
from olivine_trainer.reporting.board import Board, WorkerFiles
from olivine_trainer.storage.head import Attempt, take_attempt
from olivine_trainer.storage.records import RunRecords, SourceDigests
from olivine_trainer.world.world import alone
from tests.support.models import VOCABULARY
from tests.unit.trainer.support import kill_in_step, local_store, make_job, run_job, tone_rows, write_rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


def _wrapped() -> OSError:
    error = OSError("Unable to load weights")
    error.__cause__ = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemoryError),
        (MemoryError(), OutOfMemoryError),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OutOfMemoryError),
        (_wrapped(), OutOfMemoryError),
        (OSError(errno.EIO, "Input/output error"), StorageUnavailableError),
        (RuntimeError("size mismatch"), ModelError),
    ],
    ids=["torch", "python", "mmap", "wrapped", "disk", "a broken model"],
)
def test_the_machines_faults_are_not_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[TrainerError]
) -> None:
    import torch

    from olivine_trainer.modeling import loading

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", fail)
    with pytest.raises(expected):
        loading.load_model(tmp_path, "s3://models/x", torch.float32)


def test_a_truncated_file_of_weights_is_the_models_fault(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    from olivine_trainer.modeling.loading import load_model

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"a \.safetensors file of model\.uri s3://models/x is truncated or damaged .*: upload"):
        load_model(folder, "s3://models/x", torch.float32)


@pytest.mark.parametrize(
    ("error", "expected", "says"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            OutOfMemoryError,
            "memory ran out while .* can't allocate memory: you tried to allocate 9 bytes",
        ),
        (
            ValueError("3 experts, 4 gates"),
            ModelError,
            "cannot be loaded as a causal language model: ValueError: 3 experts, 4 gates",
        ),
    ],
    ids=["memory", "a broken model"],
)
def test_experts_that_cannot_be_merged_are_told_by_their_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[TrainerError], says: str
) -> None:
    """transformers merges the experts of a mixture while it loads, and only logs why that failed."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM, core_model_loading

    from olivine_trainer.modeling.loading import load_model

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "vocab_size": 32,
        "num_local_experts": 2,
    }
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path, "s3://models/moe", torch.float32).num_parameters() == model.num_parameters()

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(core_model_loading.MergeModulelist, "convert", fail)
    with pytest.raises(expected, match=says):
        load_model(tmp_path, "s3://models/moe", torch.float32)


def test_weights_of_another_shape_are_named(tmp_path: Path, tiny_model: Path) -> None:
    import torch

    from olivine_trainer.modeling.loading import load_model

    name = "model.layers.1.mlp.up_proj.weight"
    broken = _copied(tiny_model, tmp_path / "broken", lambda tensors: tensors.update({name: torch.zeros(3, 3)}))
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight .*3, 3"):
        load_model(broken, "s3://models/broken", torch.float32)


def _copied(model: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The model with its tensors changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_without_all_of_its_weights_is_not_filled_up_with_random_ones(tmp_path: Path, tiny_model: Path) -> None:
    import torch

    from olivine_trainer.modeling.loading import load_model

    name = "model.layers.1.mlp.up_proj.weight"
    broken = _copied(tiny_model, tmp_path / "broken", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=rf"lack 1 tensors of a LlamaForCausalLM, e\.g\. {name}"):
        load_model(broken, "s3://models/broken", torch.float32)


def test_a_tokenizer_that_makes_tokens_unknown_to_the_model_is_told(tmp_path: Path, tiny_model: Path, rows: Path) -> None:
    """A token was added, the embeddings were not resized: it ended as an index error, again and again."""
    from transformers import AutoTokenizer

    model = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    # Up to the last token that the model knows, and one beyond.
    tokenizer.add_tokens([f"[{number}]" for number in range(VOCABULARY - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    job = make_job(model, rows, f"file://{tmp_path}/runs", training__maxSteps=2)
    run_job(job, tmp_path / "scratch")  # padding is masked: any known token does
    tokenizer.add_tokens(["ha ha"])
    tokenizer.save_pretrained(model)
    job = make_job(model, rows, f"file://{tmp_path}/other", training__maxSteps=2)
    with pytest.raises(ModelError, match=r"makes token 321, but the model knows 320 tokens"):
        run_job(job, tmp_path / "scratch")


def test_sigterm_before_training_is_not_swallowed_by_a_library() -> None:
    def merge_weights() -> None:
        with contextlib.suppress(Exception):  # as transformers does
            signal.raise_signal(signal.SIGTERM)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        StopFlag().install()
        with pytest.raises(AskedToGo):
            merge_weights()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_sigterm_while_a_worker_leaves_its_end_does_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's mistake, told while the pod is deleted: it ended as an unknown crash, which costs a retry."""
    from olivine_trainer.cli import worker

    job = make_job(tmp_path, tmp_path / "nothing.jsonl", f"file://{tmp_path}/runs")
    files = WorkerFiles(tmp_path, 0)
    real = worker._Worker._leave

    def leave(self: Any, message: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(self, message)

    monkeypatch.setattr(worker._Worker, "_leave", leave)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = worker._Worker(job, alone().place, tmp_path, files, Board(files)).work()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    end = files.read_end()
    assert end is not None
    assert (code, end.reason) == (11, Reason.DATA_NOT_FOUND)


@pytest.mark.parametrize(
    ("norm", "scale", "goes_on"),
    [(1.0, None, True), (math.inf, None, False), (math.inf, 65536.0, True), (math.nan, 2.0**-14, False), (1.0, 2.0**-14, True)],
    ids=["finite", "fp32", "fp16, a step to skip", "fp16, thirty of them in a row", "fp16, mended"],
)
def test_fp16_skips_steps_for_a_lower_scale_but_not_for_ever(norm: float, scale: float | None, goes_on: bool) -> None:
    """A gradient that is no number at any scale was skipped to the last step, and the untouched adapter published."""
    from olivine_trainer.loop.engine import may_go_on

    assert may_go_on(norm, scale) is goes_on


@pytest.mark.parametrize("name", ["cuda0", "cuda3"])
def test_a_ranks_random_numbers_are_found_whatever_its_device_was_called(name: str) -> None:
    """Two pods of one process became one pod of two: rank 1's device was cuda0, and is cuda1."""
    import torch

    from olivine_trainer.loop.state import device_state

    found = device_state({"torch": torch.zeros(1), name: torch.ones(1)})
    assert found is not None
    assert found.item() == 1
    assert device_state({"torch": torch.zeros(1)}) is None


def digests(attempt: Attempt, data: str, model: str) -> SourceDigests:
    return SourceDigests(attempt=attempt.number, data=data, model=model, effective_batch=attempt.number)


def test_sources_that_changed_end_the_run(tmp_path: Path) -> None:
    records = RunRecords(local_store(tmp_path))
    first = take_attempt(records.run)
    records.record_sources(first, digests(first, "d", "m"))
    second = take_attempt(records.run)
    assert records.record_sources(second, digests(second, "d", "m")).effective_batch == 1  # the first attempt's
    with pytest.raises(DataError, match=r"the rows of .* changed since attempt 1 of this run: .* under a new name"):
        records.record_sources(second, digests(second, "other", "m"))
    with pytest.raises(ModelError, match=r"the files of model\.uri have changed since attempt 1"):
        records.record_sources(second, digests(second, "d", "other"))


def test_a_superseded_attempt_leaves_no_sources(tmp_path: Path) -> None:
    records = RunRecords(local_store(tmp_path))
    old = take_attempt(records.run)
    new = take_attempt(records.run)
    with pytest.raises(SupersededError):
        records.record_sources(old, digests(old, "old", "m"))
    records.record_sources(new, digests(new, "new", "m"))


def test_a_run_does_not_resume_over_other_rows(tiny_model: Path, tmp_path: Path) -> None:
    """The rows were edited while the job was suspended: checkpoint and baseline are of the old ones."""
    path = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    job = make_job(tiny_model, path, f"file://{tmp_path}/runs")
    kill_in_step(job, 1, tmp_path / "first")
    write_rows(path, tone_rows(23))
    with pytest.raises(DataError, match="changed since attempt 1") as caught:
        run_job(job, tmp_path / "second")
    assert caught.value.exit_code == 11


def test_a_baseline_that_is_no_number_does_not_poison_the_run(tmp_path: Path) -> None:
    """JSON writes NaN as null, which no later attempt could read."""
    from olivine_trainer.evaluation.evaluate import Evaluated
    from olivine_trainer.loop import train

    records = RunRecords(local_store(tmp_path))
    measured = Evaluated(metrics={"evalLoss": math.nan, "perplexity": math.inf, "accuracy": 0.5}, answers=["joy"])
    run: Any = SimpleNamespace(
        claim=SimpleNamespace(records=records, attempt=take_attempt(records.run)),
        board=Board(None),
        job=SimpleNamespace(spec=SimpleNamespace(training=SimpleNamespace(early_stopping=None))),
        engine=SimpleNamespace(whole=_Nothing, method=SimpleNamespace(as_base=_Nothing)),
        evaluator=SimpleNamespace(everything=lambda _: measured),
        world=alone(),
    )
    assert train._measure_base(run).metrics == {"accuracy": 0.5}
    assert train._measure_base(run).metrics == {"accuracy": 0.5}  # read back


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def _tracker(record: Callable[..., None]) -> Any:
    from olivine_trainer.loop.tracker import Tracker

    run = SimpleNamespace(sub=lambda _: SimpleNamespace(put=None))
    claim: Any = SimpleNamespace(run=run, attempt=SimpleNamespace(number=1), records=SimpleNamespace(record_progress=record))
    spec: Any = None
    return Tracker(spec=spec, claim=claim, board=Board(None), total_steps=8, rows=8, effective_batch=1, tensorboard=None)


def test_a_note_of_progress_that_fails_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        raise error

    error: TrainerError = StorageUnavailableError("it hangs")
    tracker = _tracker(fail)
    tracker.note_progress(3, force=True)
    error = SupersededError("somebody else's")
    with pytest.raises(SupersededError):
        tracker.note_progress(4, force=True)


def test_a_note_of_progress_is_one_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore.exceptions

    from olivine_trainer.storage.records import AttemptProgress

    def fail(*_: Any, **__: Any) -> None:
        raise obstore.exceptions.GenericError("connection reset")

    slept: list[float] = []
    records = RunRecords(local_store(tmp_path, sleep=slept.append))
    monkeypatch.setattr("obstore.put", fail)
    with pytest.raises(StorageUnavailableError):
        records.record_progress(1, AttemptProgress(step=1))
    assert slept == []


def test_checkpoints_that_cannot_be_pruned_do_not_end_the_run(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from olivine_trainer.loop import saving

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(saving, "prune_checkpoints", fail)
    error: TrainerError = StorageUnavailableError("it hangs")
    changes: dict[str, Any] = {"training__maxSteps": 2, "checkpoint__everySteps": 1, "data__validationFraction": None}
    job = make_job(tiny_model, rows, f"file://{tmp_path}/a", data__stratifyBy=None, **changes)
    assert run_job(job, tmp_path / "one").snapshot.progress.step == 2
    error = SupersededError("somebody else's")
    job = make_job(tiny_model, rows, f"file://{tmp_path}/b", data__stratifyBy=None, **changes)
    with pytest.raises(SupersededError):
        run_job(job, tmp_path / "two")


def _answers(causal: Any, tokenizer: Any, limit: int) -> list[str]:
    import torch

    from olivine_api.finetunejob import LossOn
    from olivine_trainer.data.tokens import completion_example
    from olivine_trainer.evaluation.generate import greedy_answers
    from olivine_trainer.modeling.loading import Tokenizer

    examples = [completion_example(tokenizer, prompt, " joy", loss_on=LossOn.COMPLETION) for prompt in ("ha ha ha", "ho")]
    wrapped = Tokenizer(backend=tokenizer, stop_ids=frozenset({1}))
    device = torch.device("cpu")
    return greedy_answers(causal, examples, wrapped, batch_size=1, limit=limit, device=device, tick=lambda *_: None)


def test_the_models_own_settings_do_not_colour_greedy_answers(tiny_model: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    causal = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    plain = _answers(causal, tokenizer, 12)
    own = GenerationConfig(repetition_penalty=9.0, no_repeat_ngram_size=1, min_new_tokens=9, suppress_tokens=[5, 6, 7])
    causal.generation_config = own
    assert _answers(causal, tokenizer, 12) == plain
    assert causal.generation_config is own


def test_answers_end_where_the_models_positions_do(tokenizer: Any) -> None:
    """A model with learned positions fails past its last one."""
    import torch

    asked: list[tuple[int, int]] = []

    class Causal:
        config = SimpleNamespace(max_position_embeddings=12)
        generation_config = None

        def eval(self) -> None: ...

        def generate(self, input_ids: Any, attention_mask: Any, generation_config: Any) -> Any:
            asked.append((input_ids.shape[1], generation_config.max_new_tokens))
            return torch.cat([input_ids, torch.ones_like(input_ids)], dim=1)

    _answers(Causal(), tokenizer, 10)
    assert len(asked) == 2
    assert all(new == min(10, 12 - width) for width, new in asked)
    assert any(new < 10 for _, new in asked)


def test_only_this_processs_device_is_captured_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a pod that saw two devices is taken up by one that sees one."""
    import torch

    from olivine_trainer.loop.state import RandomState, capture_random, restore_random

    put_back: list[tuple[list[int], int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda index: torch.tensor([index], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: put_back.append((state.tolist(), index)))
    kept = capture_random()
    assert [name for name in kept.tensors if name.startswith("cuda")] == ["cuda1"]
    more = {f"cuda{index}": torch.tensor([index], dtype=torch.uint8) for index in (0, 1, 10)}
    restore_random(RandomState({**kept.tensors, **more}))
    assert put_back == [([1], 1)]
