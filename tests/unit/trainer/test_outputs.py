"""What a run publishes beside its adapter: equal to what was trained, or not at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivine_api.reasons import Reason
from olivine_trainer.errors import ModelError
from olivine_trainer.loop.claim import open_run
from tests.unit.trainer.support import make_job, merged, run_job, tone_rows, write_rows

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

    published = run_job(
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
