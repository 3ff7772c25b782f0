"""What a run publishes beside its adapter: equal to what was trained, or not at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivine_api.reasons import Reason
from olivine_trainer.bundle.check import check_bundle
from olivine_trainer.bundle.report import BundleReport
from olivine_trainer.cli.bundle import main
from olivine_trainer.errors import ModelError, TrainerError
from olivine_trainer.loop.claim import open_run
from olivine_trainer.loop.stop import StopFlag
from tests.support.models import WIDE, make_tiny
from tests.unit.trainer.ranks import Ranks
from tests.unit.trainer.support import KilledError, make_job, merged, run_job, tone_rows, write_rows

LORA: dict[str, Any] = {"type": "LoRA", "lora": {"rank": 4, "alpha": 8}}
_TEXT = "Phrase: ha ha 12\nTone:"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(12))


def job_of(model: Path, rows: Path, storage: Path, **changes: Any) -> Any:
    short: dict[str, Any] = {"training__maxSteps": 2, "training__learningRate": 0.05, "checkpoint__everySteps": 1, "method": LORA}
    return make_job(model, rows, f"file://{storage}", **(short | changes))


def folders(published: Any) -> dict[str, Path]:
    """The artifacts' folders by kind."""
    return {one.kind: Path(one.uri.removeprefix("file://")) for one in published.snapshot.artifacts}


def logits_of(model: Any, tokenizer: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([tokenizer.encode(_TEXT)])).logits


MERGED: dict[str, dict[str, Any]] = {
    "LoRA": LORA,
    "QLoRA, onto the unquantised base": {"type": "QLoRA", "lora": {"rank": 4}},
    "a tied head trained whole": {"type": "LoRA", "lora": {"rank": 4, "modulesToSave": ["norm", "lm_head"]}},
    "a tied head with an adapter": {"type": "LoRA", "lora": {"rank": 4, "targetModules": ["q_proj", "lm_head"]}},
}


@pytest.mark.parametrize("name", MERGED)
def test_plain_transformers_loads_a_merged_model_that_equals_base_and_adapter(
    tiny_model: Path, rows: Path, tokenizer: Any, tmp_path: Path, name: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    published: Any = run_job(
        job_of(tiny_model, rows, tmp_path / "runs", method=MERGED[name], outputs={"merged": True}), tmp_path / "scratch"
    )
    found = folders(published)
    assert list(found) == ["Adapter", "Model"]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    untuned = logits_of(base, tokenizer)
    tuned = logits_of(PeftModel.from_pretrained(base, str(found["Adapter"])), tokenizer)
    whole = logits_of(AutoModelForCausalLM.from_pretrained(found["Model"]), AutoTokenizer.from_pretrained(found["Model"]))
    assert (tuned - untuned).abs().max() > 1e-2
    assert (tuned - whole).abs().max() < 1e-5  # fp32, logits below 10: only the order of additions differs
    about = json.loads((found["Model"] / "manifest.json").read_text())
    assert (about["kind"], about["merged"], about["modelDigest"]) == ("Model", True, published.snapshot.resolved.model.digest)
    assert json.loads((found["Model"] / "config.json").read_text())["use_cache"] is True


def test_a_merged_classifier_keeps_its_trained_head_and_labels(
    tiny_model: Path, rows: Path, tokenizer: Any, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    head = {"classification": {"head": "Sequence"}, "data__labels": {"field": "tone"}}
    published = run_job(job_of(tiny_model, rows, tmp_path / "runs", outputs={"merged": True}, **head), tmp_path / "scratch")
    found = folders(published)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3, pad_token_id=1)
    tuned = logits_of(PeftModel.from_pretrained(base, str(found["Adapter"])), tokenizer)
    whole = AutoModelForSequenceClassification.from_pretrained(found["Model"])
    assert (tuned - logits_of(whole, tokenizer)).abs().max() < 1e-5
    assert sorted(whole.config.id2label.values()) == ["anger", "fear", "joy"]


def test_instead_of_the_adapter_the_merged_model_alone(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    job = job_of(tiny_model, rows, tmp_path / "runs", outputs={"adapter": False, "merged": True})
    assert list(folders(run_job(job, tmp_path / "scratch"))) == ["Model"]
    assert len(list(Path(open_run(job, {}).run.uri.removeprefix("file://"), "artifacts").iterdir())) == 1


@pytest.mark.parametrize("adapter", [True, False])
def test_a_full_model_is_its_own_merged_one(tiny_model: Path, rows: Path, tmp_path: Path, adapter: bool) -> None:
    outputs = {"adapter": adapter, "merged": True}
    job = job_of(tiny_model, rows, tmp_path / "runs", method={"type": "Full"}, outputs=outputs)
    assert [one.kind for one in run_job(job, tmp_path / "scratch").snapshot.artifacts] == ["Model"]


@pytest.fixture
def nothing_is_equal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bound that no merge keeps: a merge that goes wrong is not to be had for the asking."""
    with monkeypatch.context() as patch:
        patch.setattr("olivine_trainer.loop.outputs.MERGE_TOLERANCE", -1.0)
        yield


@pytest.mark.usefixtures("nothing_is_equal")
@pytest.mark.parametrize("adapter", [True, False])
def test_a_merged_model_that_is_not_equal_ends_the_run_and_the_adapter_is_kept(
    tiny_model: Path, rows: Path, tmp_path: Path, adapter: bool
) -> None:
    job = job_of(tiny_model, rows, tmp_path / "runs", outputs={"adapter": adapter, "merged": True})
    with pytest.raises(
        ModelError, match=r"outputs\.merged: a logit of the merged model differs by .* is kept at file://"
    ) as caught:
        run_job(job, tmp_path / "scratch")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.PARITY_UNMET, 12)
    records = open_run(job, {})
    assert records.published() is None
    kept = Path(caught.value.message.partition("kept at file://")[2])
    assert json.loads((kept / "manifest.json").read_text())["kind"] == "Adapter"
    assert [one.name for one in Path(records.run.uri.removeprefix("file://"), "artifacts").iterdir()] == [kept.name]
    assert any(Path(records.run.uri.removeprefix("file://"), "checkpoints").iterdir())


def test_with_a_gate_unmet_nothing_is_made_of_the_adapter(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    gates = [{"metric": "accuracy", "min": 1.0}]
    changes = merged({"outputs": {"adapter": False, "merged": True}}, {"evaluation__gates": gates})
    published = run_job(job_of(tiny_model, rows, tmp_path / "runs", **changes), tmp_path / "scratch")
    assert published.unmet
    assert list(folders(published)) == ["Adapter"]


@pytest.fixture(scope="module")
def wide_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 16, which onnxruntime's attention wants; `tiny_model` first: the heavy imports are its."""
    return make_tiny("Llama", tmp_path_factory.mktemp("wide") / "model", intermediate_size=96, **WIDE)


ONNX: dict[str, tuple[dict[str, Any], str]] = {
    "LoRA": (LORA, "int8"),
    "QLoRA": ({"type": "QLoRA", "lora": {"rank": 4}}, "fp32"),
    "Adapter": ({"type": "Adapter", "adapter": {"bottleneck": 8}}, "fp16"),
    "Full": ({"type": "Full"}, "int8"),
}


@pytest.mark.parametrize("name", ONNX)
def test_a_tuned_model_is_exported_proven_and_answers(
    wide_model: Path, rows: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    method, precision = ONNX[name]
    outputs = {"adapter": False, "onnx": {"precision": precision}}
    published: Any = run_job(job_of(wide_model, rows, tmp_path / "runs", method=method, outputs=outputs), tmp_path / "scratch")
    (artifact,) = published.snapshot.artifacts
    folder = folders(published)["Onnx"]
    manifest = check_bundle(folder)
    assert manifest.digest == artifact.digest == folder.name
    report = BundleReport.model_validate_json((folder / "report.json").read_bytes())
    about = json.loads((folder / "manifest.json").read_text())
    assert (about["kind"], about["method"], about["precision"]) == ("Onnx", name, precision)
    assert main(["bundle", "verify", str(folder)]) == 0
    adapter = "base" if name == "Full" else "tone"
    assert main(["bundle", "run", str(folder), "--adapter", adapter, "--prompt", "Phrase: ha", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out
    if name == "Full":
        proven = report.base
        assert (manifest.slots, manifest.adapters) == ([], [])
        assert about["modelDigest"] != published.snapshot.resolved.model.digest
    else:
        (proven,) = report.adapters
        assert proven.source == published.snapshot.storage_uri  # no path of this machine
        assert about["modelDigest"] == published.snapshot.resolved.model.digest
    # fp32 against fp32: only the order of additions differs.
    assert proven.max_logit_difference is not None
    assert proven.max_logit_difference < 1e-4
    assert (proven.top1_agreement, proven.greedy_agreement) == (1.0, 1.0)


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_for_a_device_that_is_not_here_the_report_says_that_the_twin_alone_is_proven(
    wide_model: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    outputs = {"adapter": False, "onnx": {"precision": "int4", "target": "directml"}}
    published = run_job(job_of(wide_model, rows, tmp_path / "runs", method={"type": method}, outputs=outputs), tmp_path / "scratch")
    folder = folders(published)["Onnx"]
    assert check_bundle(folder).target == "directml"
    report = BundleReport.model_validate_json((folder / "report.json").read_bytes())
    assert report.base.not_verified is not None
    assert report.base.max_logit_difference < 1e-4
    assert report.base.mean_kl is None


def test_all_outputs_are_published_at_once_by_an_attempt_after_one_that_died_while_exporting(
    wide_model: Path, rows: Path, tmp_path: Path
) -> None:
    outputs = {"merged": True, "onnx": {"precision": "fp32"}}
    job = job_of(wide_model, rows, tmp_path / "runs", outputs=outputs)

    class Dies(StopFlag):
        """After the merged model is uploaded, before the graph is made."""

        def check(self) -> None:
            if len(list(tmp_path.glob("runs/team/tone/u1/artifacts/*/manifest.json"))) == 2:
                raise KilledError

    with pytest.raises(KilledError):
        run_job(job, tmp_path / "first", stop=Dies())
    assert open_run(job, {}).published() is None
    published: Any = run_job(job, tmp_path / "second")
    assert published.snapshot.resumed_from_step == job.spec.training.max_steps
    assert [one.kind for one in published.snapshot.artifacts] == ["Adapter", "Model", "Onnx"]
    recorded = open_run(job, {}).published()
    assert recorded is not None
    assert [one.kind for one in recorded.snapshot.artifacts] == ["Adapter", "Model", "Onnx"]
    assert len(list(tmp_path.glob("runs/team/tone/u1/artifacts/*"))) == 3
    assert not list(tmp_path.glob("runs/team/tone/u1/checkpoints/*/*"))
    check_bundle(folders(published)["Onnx"])


def test_a_graph_that_is_not_equal_ends_the_run_and_the_adapter_is_kept(wide_model: Path, rows: Path, tmp_path: Path) -> None:
    """An adapter that changes nothing is not to be told from one that was lost on the way."""
    job = job_of(wide_model, rows, tmp_path / "runs", training__learningRate=1e-9, outputs={"onnx": {"precision": "fp32"}})
    with pytest.raises(
        ModelError, match=r"outputs\.onnx: it changes no logit of the base by more than .* is kept at file://"
    ) as caught:
        run_job(job, tmp_path / "scratch")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.PARITY_UNMET, 12)
    (kept,) = tmp_path.glob("runs/team/tone/u1/artifacts/*/manifest.json")
    assert json.loads(kept.read_text())["kind"] == "Adapter"
    assert list(tmp_path.glob("runs/team/tone/u1/checkpoints/*"))


NO_GRAPH: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "unknown to the builder": ("GPT-2", {}, LORA, "model builder cannot make an fp32 graph of this model"),
    "heads of no width": ("Llama", {}, LORA, r"onnxruntime cannot run a graph of this architecture .*head_size"),
    "no place for fused projections": (
        "Phi3",
        {**WIDE, "original_max_position_embeddings": 256},
        LORA,
        r"no place for an adapter of gate_up_proj, qkv_proj; this model's graph has places for down_proj, o_proj: write those",
    ),
    "no place for the adapter": (
        "Llama",
        WIDE,
        {"type": "LoRA", "lora": {"targetModules": ["q_proj", "lm_head"]}},
        r"no place for an adapter of lm_head; this model's graph has places for down_proj, gate_proj",
    ),
}


@pytest.mark.parametrize("name", NO_GRAPH)
def test_what_cannot_be_a_graph_is_told_before_training(tiny_model: Path, rows: Path, tmp_path: Path, name: str) -> None:
    assert tiny_model  # the heavy imports are its
    family, sizes, method, told = NO_GRAPH[name]
    model = make_tiny(family, tmp_path / "model", **sizes)
    job = job_of(model, rows, tmp_path / "runs", method=method, outputs={"onnx": {"precision": "fp32"}})
    with pytest.raises(TrainerError, match=told):
        run_job(job, tmp_path / "scratch")
    assert not list(tmp_path.glob("runs/team/tone/u1/checkpoints/*"))


@pytest.mark.full
def test_a_model_that_two_processes_trained_in_parts_becomes_a_graph(wide_model: Path, rows: Path, tmp_path: Path) -> None:
    """Rank 0 gathers the weights and lets go of them before the export; rank 1 waits for its word."""
    ranks = Ranks(tmp_path / "ranks", {})
    try:
        outputs = {"adapter": False, "onnx": {"precision": "fp32"}}
        job = job_of(wide_model, rows, tmp_path / "runs", method={"type": "Full"}, training__learningRate=1e-3, outputs=outputs)
        zero, one = ranks.run(job)
    finally:
        ranks.close()
    snapshots = [rank.end().snapshot for rank in (zero, one)]
    assert snapshots[0] is not None
    assert [one.kind for one in snapshots[0].artifacts] == ["Onnx"]
    check_bundle(Path(snapshots[0].artifacts[0].uri.removeprefix("file://")))
