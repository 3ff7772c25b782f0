"""LoRA (Hu et al. 2021) by peft: injected, saved in peft's layout with canonical bytes, loaded again."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from olivine_api.finetunejob import Lora
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def add_lora(model: Any, lora: Lora, *, seed: int) -> PeftModel:
    """Inject adapters, initialised from `seed`; only they require gradients.

    Raises ConfigurationError where a target is not among the model's linear modules, naming those that are.
    """
    targets = resolve_targets(model, lora.target_modules)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  (typed int, used as a number)
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rs_lora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def linear_names(model: Any) -> list[str]:
    """Last names of the linear modules but the head, sorted (q_proj, …): what an adapter can be put onto."""
    head = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    return sorted(found)


def resolve_targets(model: Any, asked: list[str] | None) -> list[str]:
    """The targets, sorted; by default every linear module but the head."""
    known = linear_names(model)
    if asked is None:
        return known
    full = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    missing = [target for target in asked if not any(name == target or name.endswith(f".{target}") for name in full)]
    if missing:
        raise ConfigurationError(
            Reason.TARGET_MODULES_NOT_FOUND,
            f"method.lora.targetModules names {', '.join(sorted(missing))}, which this model does not have; its linear modules are:"
            f" {', '.join(known)}",
        )
    return sorted(set(asked))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name, sorted: the order in which optimizer state is kept."""
    return dict(sorted((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad))


def save_adapter(model: PeftModel, folder: Path, *, base_uri: str) -> None:
    """Write peft's two files with canonical bytes: the same weights give the same files, in every run and on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / WEIGHTS)
    with tempfile.TemporaryDirectory() as scratch:
        config = model.peft_config["default"]
        config.save_pretrained(scratch)
        raw: dict[str, Any] = json.loads((Path(scratch) / CONFIG).read_text())
    # peft keeps targets in a set, and the base by its folder on this machine.
    raw |= {"target_modules": sorted(raw["target_modules"]), "base_model_name_or_path": base_uri, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def save_weights(model: PeftModel, path: Path) -> None:
    """The adapter's tensors, contiguous and on the CPU."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: state[name].detach().cpu().contiguous() for name in sorted(state)}, path, metadata={"format": "pt"})


def load_weights(model: PeftModel, path: Path) -> None:
    """Put saved tensors into the injected adapter. Raises ValueError where names do not match."""
    result = set_peft_model_state_dict(model, load_file(path))
    if result.unexpected_keys:
        raise ValueError(f"the adapter has tensors that the model has no place for: {result.unexpected_keys[:3]}")
