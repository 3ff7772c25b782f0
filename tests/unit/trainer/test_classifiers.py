"""A classification head over the last token, by every method: trained whole, saved beside what is trained, loaded by others."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from olivine_api.finetunejob import MethodType, parse_spec
from olivine_trainer.methods.method import About, trainable
from tests.support.matrix import METHODS
from tests.support.models import FAMILIES, make_tiny
from tests.unit.trainer.support import artifact_folder, kill_in_step, make_job, run_job, write_rows

LABELS = ("joy", "anger", "fear")
TEXTS = ("ha ha 12 joy", "anger")


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make_tiny(family, tmp_path_factory.mktemp("family")) for family in FAMILIES}


def classifier(model: Path, method: str) -> tuple[Any, Any]:
    """The method on a classifier, moved as training would; and its tokenizer."""
    import torch

    from olivine_trainer.methods.choose import base_dtype, put_on, quantization
    from olivine_trainer.modeling.imports import import_training_stack
    from olivine_trainer.modeling.loading import fitted_to, load_model, load_tokenizer

    spec = parse_spec(make_job(model, model, "file:///x", method=METHODS[method]).spec.to_json_dict()).method
    import_training_stack(quantized=spec.type is MethodType.QLORA)
    base = load_model(model, "file://tiny", base_dtype(spec, torch.float32), quantization=quantization(spec), labels=LABELS)
    tokenizer = fitted_to(base, load_tokenizer(model, "file://tiny"))
    return put_on(base, spec, seed=3), tokenizer


def nudge(method: Any) -> None:
    import torch

    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in trainable(method.model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def plain_logits(model: Any, tokenizer: Any) -> Any:
    """[texts, labels] as transformers itself gives them, for a padded batch."""
    import torch

    model.eval()
    batch = tokenizer.backend(list(TEXTS), return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits


def our_logits(method: Any, tokenizer: Any) -> Any:
    """The same by the trainer's own forward, at the last token of each text."""
    import torch

    from olivine_trainer.modeling.forward import can_split_head, learned_logits

    method.causal.eval()
    assert can_split_head(method.causal)
    batch = tokenizer.backend(list(TEXTS), return_tensors="pt", padding=True, padding_side="right")
    lengths = batch["attention_mask"].sum(1)
    positions = torch.arange(len(TEXTS)) * batch["input_ids"].shape[1] + lengths - 1
    with torch.no_grad():
        return learned_logits(method.causal, batch["input_ids"], batch["attention_mask"], positions, split_head=True)


def loaded_plainly(folder: Path, model: Path, method: str) -> Any:
    """By transformers, peft and the documented loader."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from olivine_trainer.methods.choose import quantization
    from olivine_trainer.modeling.quantized import keep_as_quantised, loading_options

    if method == "Full":
        return AutoModelForSequenceClassification.from_pretrained(folder)
    spec = parse_spec(make_job(model, model, "file:///x", method=METHODS[method]).spec.to_json_dict()).method
    asked = quantization(spec)
    options = loading_options(asked, torch.float32, skip=["score"]) if asked is not None else {}
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(LABELS), pad_token_id=1, **options)
    keep_as_quantised(base)
    if method != "LoRA" and asked is None:
        page = (Path(__file__).resolve().parents[3] / "docs/adapters.md").read_text()
        space: dict[str, Any] = {}
        exec(page.split("```python\n")[1].split("```")[0], space)
        space["put_adapter_on"](base, folder)
        return base
    return PeftModel.from_pretrained(base, str(folder))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_is_saved_and_loaded_by_others(models: dict[str, Path], tmp_path: Path, family: str, method: str) -> None:
    import torch

    made, tokenizer = classifier(models[family], method)
    assert any("score" in name for name in trainable(made.model))
    assert all(parameter.dtype == torch.float32 for parameter in trainable(made.model).values())
    nudge(made)
    ours = our_logits(made, tokenizer)
    assert ours.shape == (2, 3)
    torch.testing.assert_close(plain_logits(made.causal, tokenizer), ours, rtol=1e-5, atol=1e-6)
    made.save_weights(tmp_path / "weights")
    other, _ = classifier(models[family], method)
    other.load_weights(tmp_path / "weights")
    assert torch.equal(our_logits(other, tokenizer), ours)
    made.export(tmp_path / "artifact", About("file://tiny", tokenizer.backend))
    loaded = loaded_plainly(tmp_path / "artifact", models[family], method)
    torch.testing.assert_close(plain_logits(loaded, tokenizer), ours, rtol=1e-5, atol=1e-6)
    configs = "".join(path.read_text() for path in (tmp_path / "artifact").glob("*.json"))
    if method in ("LoRA", "QLoRA"):
        assert json.loads((tmp_path / "artifact" / "adapter_config.json").read_text())["modules_to_save"] == ["classifier", "score"]
    else:
        assert "anger" in configs


@pytest.mark.parametrize("method", [name for name in METHODS if name != "Full"])
def test_the_base_is_measured_with_the_head_that_training_began_with(models: dict[str, Path], method: str) -> None:
    """Also by an attempt that resumed with a trained one."""
    import torch

    made, tokenizer = classifier(models["Llama"], method)
    untuned = our_logits(made, tokenizer)
    nudge(made)
    tuned = our_logits(made, tokenizer)
    with made.as_base():
        assert torch.equal(our_logits(made, tokenizer), untuned)
    assert torch.equal(our_logits(made, tokenizer), tuned)


def test_one_forward_gives_a_heads_answers_and_its_loss(models: dict[str, Path]) -> None:
    """Both stand in the same logits; measuring 2,280 rows twice would cost as much as training on half of them."""
    import numpy as np
    import torch

    from olivine_trainer.evaluation.evaluate import Evaluator
    from olivine_trainer.evaluation.heads import HeadScorer
    from olivine_trainer.evaluation.loss import mean_loss
    from olivine_trainer.evaluation.measures import Measure
    from olivine_trainer.modeling.example import Example
    from olivine_trainer.modeling.forward import SummedLoss

    made, tokenizer = classifier(models["Llama"], "LoRA")
    ids = [tokenizer.backend.encode(f"{text} {'12 ' * extra}") for text in TEXTS for extra in range(4)]
    examples = [
        Example(
            np.array([*prompt, row % 3], dtype=np.int32), np.arange(len(prompt) + 1) == len(prompt), len(prompt), expected="joy"
        )
        for row, prompt in enumerate(ids)
    ]
    asked: list[int] = []
    made.causal.base_model.register_forward_hook(lambda *call: asked.append(len(call[2].last_hidden_state)))
    loss, device = SummedLoss(made.model, made.causal, split_head=True), torch.device("cpu")
    evaluator = Evaluator(
        loss=loss,
        causal=made.causal,
        tokenizer=tokenizer,
        examples=examples,
        batch_rows=lambda: 3,
        metrics=[Measure(("rows",), lambda cases: {"rows": float(len(cases))})],
        samples=2,
        device=device,
        autocast=nullcontext,
        scorer=HeadScorer(made.causal, LABELS, tokenizer.pad_id, device),
    )
    found = evaluator.everything(lambda *_: None)
    assert sum(asked) == len(examples)
    assert found.metrics["rows"] == len(examples)
    assert len(found.answers) == 2
    again = mean_loss(loss, examples, batch_size=3, pad_id=tokenizer.pad_id, device=device, tick=lambda *_: None)
    assert found.metrics["evalLoss"] == again == evaluator.loss_only(lambda *_: None)["evalLoss"]


def test_a_head_starts_from_the_seed(models: dict[str, Path]) -> None:
    import torch

    one, two = (classifier(models["Llama"], "LoRA")[0].causal for _ in range(2))
    assert torch.equal(one.score.weight, two.score.weight)
    assert 0.01 < one.score.weight.std() < 0.03


HEAD: dict[str, Any] = {
    "classification": {"head": "Sequence"},
    "data__labels": {"field": "tone"},
    "training__batchSize": 8,
    "training__gradientAccumulationSteps": 1,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phrases that tell their tone."""
    words = {"joy": "ha ha", "anger": "12 12", "fear": "user"}
    made = [{"phrase": f"{words[tone]} {index % 7}", "tone": tone} for index in range(14) for tone in LABELS]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_a_head_learns_and_resumes_to_the_same_bytes(tiny_model: Path, rows: Path, tmp_path: Path, method: str) -> None:
    """What a random head says is chance; of three tones that words give away, training finds nearly all."""
    changes = {
        **HEAD,
        "method": METHODS[method],
        "training__maxSteps": 60,
        "training__learningRate": 5e-3,
        "checkpoint__everySteps": 15,
    }
    calm = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/calm", **changes), tmp_path / "s0").snapshot
    assert calm.baseline["evalLoss"] == pytest.approx(1.0986, abs=0.2)  # ln 3
    assert calm.metrics["accuracy"] >= 0.9
    assert calm.metrics.keys() >= calm.baseline.keys() == {"evalLoss", "accuracy", "f1"}
    job = make_job(tiny_model, rows, f"file://{tmp_path}/killed", **changes)
    kill_in_step(job, 20, tmp_path / "s1")
    resumed = run_job(job, tmp_path / "s2")
    assert resumed.snapshot.resumed_from_step == 15
    assert resumed.snapshot.artifacts[0].digest == calm.artifacts[0].digest
    folder = artifact_folder(resumed)
    labels = json.loads((folder / "labels.json").read_text()) if method == "LoRA" else None
    named = labels or list(json.loads((folder / "config.json").read_text())["id2label"].values())
    assert named == sorted(LABELS)  # those of the training rows, in their order
    assert resumed.samples[0].tuned in {f" {label}" for label in LABELS}


def test_a_head_learns_from_packed_rows(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Several rows in a sequence change nothing but rounding, for a head too."""
    losses: list[float] = []
    for packing in (False, True):
        changes = {**HEAD, "method": METHODS["Full"], "data__packing": packing, "training__maxSteps": 3}
        run = run_job(make_job(tiny_model, rows, f"file://{tmp_path}/{packing}", **changes), tmp_path / f"s-{packing}")
        losses.append(run.snapshot.metrics["trainLoss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
