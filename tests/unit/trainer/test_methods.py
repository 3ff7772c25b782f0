"""Every method on a tiny Llama and GPT-2: starts as the base, learns, resumes to the same bytes, publishes what others load."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from olivine_api.finetunejob import MethodType, parse_spec
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError, ModelError, StorageUnavailableError
from olivine_trainer.methods.method import About, trainable
from tests.support.models import make_tiny
from tests.unit.trainer.support import (
    artifact_folder,
    kill_in_step,
    make_job,
    run_job,
    tone_rows,
    write_rows,
)

ROOT = Path(__file__).resolve().parents[3]
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"type": "LoRA", "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
    "QLoRA": {"type": "QLoRA", "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}},
    "Adapter, Houlsby": {"type": "Adapter", "adapter": {"bottleneck": 8, "activation": "gelu"}},
    "Adapter, Pfeiffer": {"type": "Adapter", "adapter": {"bottleneck": 8, "placement": "Pfeiffer"}},
    "Full": {"type": "Full"},
    "LoRA and modules to save": {"type": "LoRA", "lora": {"rank": 4, "modulesToSave": ["norm", "lm_head"]}},
}
_TEXT = "Phrase: ha ha 12\nTone:"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", tone_rows(24))


@pytest.fixture(scope="module")
def tiny_gpt2(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` first: the heavy imports are its."""
    return make_tiny("GPT-2", tmp_path_factory.mktemp("gpt2"))


def job_of(model: Path, rows: Path, storage: Path, method: dict[str, Any], **changes: Any) -> Any:
    return make_job(
        model, rows, f"file://{storage}", **{"method": method, "training__maxSteps": 4, "checkpoint__everySteps": 2} | changes
    )


def put_on_model(model: Path, method: dict[str, Any]) -> Any:
    """The method on a loaded base, and that base's tokenizer."""
    import torch

    from olivine_trainer.methods.choose import base_dtype, put_on, quantization
    from olivine_trainer.modeling.imports import import_training_stack
    from olivine_trainer.modeling.loading import load_model

    spec = parse_spec(make_job(model, model, "file:///x", method=method).spec.to_json_dict()).method
    import_training_stack(quantized=spec.type is MethodType.QLORA)
    base = load_model(model, "file://tiny", base_dtype(spec, torch.float32), quantization=quantization(spec))
    return put_on(base, spec, seed=3)


def logits_of(causal: Any, tokenizer: Any) -> Any:
    import torch

    causal.eval()
    with torch.no_grad():
        return causal(input_ids=torch.tensor([tokenizer.encode(_TEXT)]), use_cache=False).logits


def nudge(method: Any) -> None:
    """Move every trained weight, as training would."""
    import torch

    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in trainable(method.model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_starts_as_the_base_and_goes_back_to_it(tiny_model: Path, tokenizer: Any, name: str) -> None:
    """Bit for bit: a model that begins elsewhere would be compared with a base that nobody has."""
    import torch

    from olivine_trainer.methods.choose import base_dtype, quantization
    from olivine_trainer.modeling.loading import load_model

    method = put_on_model(tiny_model, METHODS[name])
    spec = parse_spec(make_job(tiny_model, tiny_model, "file:///x", method=METHODS[name]).spec.to_json_dict()).method
    base = load_model(tiny_model, "file://tiny", base_dtype(spec, torch.float32), quantization=quantization(spec))
    untuned = logits_of(base, tokenizer)
    assert torch.equal(logits_of(method.causal, tokenizer), untuned)
    nudge(method)
    assert (logits_of(method.causal, tokenizer) - untuned).abs().max() > 1e-2
    if name != "Full":
        with method.as_base():
            assert torch.equal(logits_of(method.causal, tokenizer), untuned)


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_saved_and_loaded_bit_for_bit(tiny_model: Path, tokenizer: Any, tmp_path: Path, name: str) -> None:
    import torch

    one, two = put_on_model(tiny_model, METHODS[name]), put_on_model(tiny_model, METHODS[name])
    nudge(one)
    one.save_weights(tmp_path / "one")
    two.load_weights(tmp_path / "one")
    two.save_weights(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for before, after in zip(trainable(one.model).values(), trainable(two.model).values(), strict=True):
        assert torch.equal(before, after)
        assert after.dtype == torch.float32
    assert torch.equal(logits_of(one.causal, tokenizer), logits_of(two.causal, tokenizer))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept activations", "recomputed activations"])
def test_a_killed_run_ends_in_the_same_bytes(tiny_model: Path, rows: Path, tmp_path: Path, name: str, recomputed: bool) -> None:
    changes = {"training__gradientCheckpointing": recomputed}
    calm = run_job(job_of(tiny_model, rows, tmp_path / "calm", METHODS[name], **changes), tmp_path / "s0")
    job = job_of(tiny_model, rows, tmp_path / "killed", METHODS[name], **changes)
    kill_in_step(job, 3, tmp_path / "s1")
    resumed = run_job(job, tmp_path / "s2")
    assert resumed.snapshot.resumed_from_step == 2
    assert resumed.snapshot.artifacts[0].digest == calm.snapshot.artifacts[0].digest
    assert resumed.snapshot.metrics == calm.snapshot.metrics
    assert calm.snapshot.artifacts[0].kind == ("Model" if name == "Full" else "Adapter")
    assert calm.snapshot.baseline is not None
    assert calm.snapshot.metrics["evalLoss"] < calm.snapshot.baseline["evalLoss"]


def test_recomputed_activations_change_no_loss(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """They save memory; what is learned without dropout is the same, to the last bit."""
    digests = [
        run_job(
            job_of(tiny_model, rows, tmp_path / f"run-{on}", METHODS["Full"], training__gradientCheckpointing=on),
            tmp_path / f"s-{on}",
        )
        .snapshot.artifacts[0]
        .digest
        for on in (False, True)
    ]
    assert digests[0] == digests[1]


def test_plain_transformers_loads_a_full_models_artifact(tiny_model: Path, rows: Path, tmp_path: Path, tokenizer: Any) -> None:
    """Weights, tied head, tokenizer with its chat template; nothing of this machine, nothing random in its bytes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    published = run_job(job_of(tiny_model, rows, tmp_path / "runs", METHODS["Full"]), tmp_path / "scratch")
    folder = artifact_folder(published)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.use_cache
    assert loaded.dtype == torch.float32
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    own = AutoTokenizer.from_pretrained(folder)
    assert own.encode(_TEXT) == tokenizer.encode(_TEXT)
    assert own.chat_template == tokenizer.chat_template
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))
    untuned = logits_of(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer)
    assert (logits_of(loaded, tokenizer) - untuned).abs().max() > 1e-2
    method = put_on_model(tiny_model, METHODS["Full"])
    nudge(method)
    method.export(tmp_path / "one", About("file://tiny", tokenizer))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert torch.equal(logits_of(again, tokenizer), logits_of(method.causal, tokenizer))


def test_a_resumed_full_model_is_not_taken_for_its_base(tiny_model: Path, tmp_path: Path) -> None:
    method = put_on_model(tiny_model, METHODS["Full"])
    with method.as_base():
        method.save_weights(tmp_path / "weights")
    method.load_weights(tmp_path / "weights")
    with pytest.raises(StorageUnavailableError, match="cannot be measured as its base"), method.as_base():
        pass


@pytest.mark.parametrize("name", ["Adapter, Houlsby", "Adapter, Pfeiffer"])
def test_the_documented_loader_reads_an_adapter(tiny_model: Path, tokenizer: Any, tmp_path: Path, name: str) -> None:
    """docs/adapters.md is run as it stands: torch, safetensors and transformers, nothing of Olivine."""
    import torch
    from transformers import AutoModelForCausalLM

    method = put_on_model(tiny_model, METHODS[name])
    nudge(method)
    method.export(tmp_path / "adapter", About("s3://models/tiny", tokenizer))
    described = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert described["base_model_name_or_path"] == "s3://models/tiny"
    assert len(described["modules"]) == (4 if name == "Adapter, Houlsby" else 2)
    code = re.search(r"```python\n(.+?)```", (ROOT / "docs/adapters.md").read_text(), re.DOTALL)
    assert code is not None
    lines = [line for line in code[1].splitlines() if line.strip()]
    assert len(lines) <= 25
    space: dict[str, Any] = {}
    exec(compile(code[1], "docs/adapters.md", "exec"), space)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    space["put_adapter_on"](base, tmp_path / "adapter")
    assert torch.equal(logits_of(base, tokenizer), logits_of(method.causal, tokenizer))


def test_plain_peft_loads_a_qlora_adapter_onto_the_quantised_base(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from olivine_trainer.modeling.quantized import keep_as_quantised

    method = put_on_model(tiny_model, METHODS["QLoRA"])
    kinds = {type(module).__name__ for module in method.model.modules()}
    assert "Linear4bit" in kinds
    nudge(method)
    method.export(tmp_path / "adapter", About("file://tiny", tokenizer))
    assert "quantization" not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=four_bits, device_map="cpu", dtype=torch.float32)
    keep_as_quantised(base)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert torch.equal(logits_of(plain, tokenizer), logits_of(method.causal, tokenizer))
    # The base is the unquantised one: the adapter fits onto it, too, though the numbers differ a little.
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path / "adapter"))
    assert not torch.equal(logits_of(whole, tokenizer), logits_of(method.causal, tokenizer))


def test_qlora_names_the_unquantised_bases_digest(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    published = {
        name: run_job(job_of(tiny_model, rows, tmp_path / name, METHODS[name]), tmp_path / f"s-{name}")
        for name in ("LoRA", "QLoRA")
    }
    resolved = [one.snapshot.resolved.model for one in published.values()]
    assert resolved[0] == resolved[1]


@pytest.mark.parametrize("kind", ["nf4 without double quantisation", "fp4", "int8"])
def test_other_quantisations_train(tiny_model: Path, rows: Path, tmp_path: Path, kind: str) -> None:
    chosen = {
        "nf4 without double quantisation": {"doubleQuantization": False},
        "fp4": {"type": "fp4"},
        "int8": {"type": "int8", "bits": 8},
    }[kind]
    method = {**METHODS["QLoRA"], "quantization": chosen}
    published = run_job(job_of(tiny_model, rows, tmp_path / "runs", method), tmp_path / "scratch")
    assert published.snapshot.metrics["evalLoss"] < published.snapshot.baseline["evalLoss"]


# A user's real configuration: the norm and the head of GPT-2 trained whole, the head tied to the embeddings.
USERS = {"type": "LoRA", "lora": {"rank": 4, "targetModules": ["c_attn", "c_proj"], "modulesToSave": ["ln_f", "lm_head"]}}


def test_gpt2_with_its_norm_and_tied_head_trained_whole(tiny_gpt2: Path, rows: Path, tokenizer: Any, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    calm = run_job(job_of(tiny_gpt2, rows, tmp_path / "calm", USERS), tmp_path / "s0")
    job = job_of(tiny_gpt2, rows, tmp_path / "killed", USERS)
    kill_in_step(job, 3, tmp_path / "s1")
    assert run_job(job, tmp_path / "s2").snapshot.artifacts[0].digest == calm.snapshot.artifacts[0].digest
    assert calm.snapshot.metrics["evalLoss"] < calm.snapshot.baseline["evalLoss"]

    method = put_on_model(tiny_gpt2, USERS)
    trained = {name.removeprefix("base_model.model.") for name in trainable(method.model)}
    assert {"lm_head.modules_to_save.default.weight", "transformer.ln_f.modules_to_save.default.weight"} < trained
    embeddings = method.causal.get_input_embeddings().weight.clone()
    nudge(method)
    assert torch.equal(method.causal.get_input_embeddings().weight, embeddings)  # untied: the embeddings stay the base's
    method.export(tmp_path / "adapter", About("file://gpt2", tokenizer))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_gpt2), str(tmp_path / "adapter"))
    assert torch.equal(logits_of(plain, tokenizer), logits_of(method.causal, tokenizer))


@pytest.mark.parametrize(
    ("lora", "reason", "told"),
    [
        (
            {"targetModules": ["q_proj"]},
            Reason.TARGET_MODULES_NOT_FOUND,
            "targetModules names q_proj, which this model does not have; its linear modules are: c_attn, c_fc, c_proj",
        ),
        (
            {"modulesToSave": ["norm"]},
            Reason.TARGET_MODULES_NOT_FOUND,
            "modulesToSave names norm, which this model does not have; its modules are: attn, c_attn, c_fc, c_proj,",
        ),
        (
            {"targetModules": ["c_attn", "c_proj"], "modulesToSave": ["mlp.c_proj"]},
            Reason.INVALID_SPEC,
            "targetModules and modulesToSave both have c_proj",
        ),
    ],
    ids=["target", "module to save", "both"],
)
def test_wrong_modules_are_told_with_those_that_exist(tiny_gpt2: Path, lora: dict[str, Any], reason: Reason, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        put_on_model(tiny_gpt2, {"type": "LoRA", "lora": lora})
    assert caught.value.reason is reason
    assert told in caught.value.message


def test_a_quantised_module_cannot_be_trained_whole(tiny_gpt2: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"whose weights method\.type QLoRA quantises"):
        put_on_model(tiny_gpt2, {"type": "QLoRA", "lora": {"targetModules": ["c_attn"], "modulesToSave": ["c_proj"]}})


def test_a_module_to_save_is_not_taken_for_others_that_end_alike(tiny_model: Path) -> None:
    """peft compares the ends of names: `norm` would be each layer's input_layernorm, too."""
    method = put_on_model(tiny_model, {"type": "LoRA", "lora": {"modulesToSave": ["norm"]}})
    whole = [name for name in trainable(method.model) if "modules_to_save" in name]
    assert whole == ["base_model.model.model.norm.modules_to_save.default.weight"]


def test_a_model_of_another_form_is_refused_by_adapter_with_a_sentence(tiny_model: Path) -> None:
    from torch import nn
    from transformers import AutoModelForCausalLM

    from olivine_api.methods import Bottleneck
    from olivine_trainer.methods.adapter import put_on_adapter

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    block = model.model.layers[1]
    block.self_attn.o_proj, block.self_attn.odd = nn.Identity(), block.self_attn.o_proj
    del block.self_attn.o_proj
    with pytest.raises(ModelError, match=r"no place in a LlamaForCausalLM: model\.layers\.1 has no self_attn"):
        put_on_adapter(model, Bottleneck(), seed=0)
