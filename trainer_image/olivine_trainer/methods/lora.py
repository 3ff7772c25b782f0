"""LoRA (Hu et al. 2021) by peft: injected, saved in peft's layout with canonical bytes, loaded again."""

import json
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from olivine_api.finetunejob import Lora
from olivine_api.reasons import Reason
from olivine_api.status import ArtifactKind
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.methods.method import About, save_tensors

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class LoraMethod:
    """Adapters beside frozen linear modules. See `Method`."""

    model: PeftModel
    kind: ArtifactKind = "Adapter"

    @property
    def causal(self) -> Any:
        """See `Method`."""
        return self.model.get_base_model()

    def save_weights(self, path: Path) -> None:
        """See `Method`."""
        state = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        save_tensors(state.items(), path)

    def load_weights(self, path: Path) -> None:
        """See `Method`."""
        result = set_peft_model_state_dict(self.model, load_file(path))
        if result.unexpected_keys:
            raise ValueError(f"the adapter has tensors that the model has no place for: {result.unexpected_keys[:3]}")

    def export(self, folder: Path, about: About) -> None:
        """peft's two files. See `Method`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(folder / WEIGHTS)
        with tempfile.TemporaryDirectory() as scratch:
            self.model.peft_config["default"].save_pretrained(scratch)
            raw: dict[str, Any] = json.loads((Path(scratch) / CONFIG).read_text())
        # peft keeps targets in a set, and the base by its folder on this machine.
        raw |= {
            "target_modules": sorted(raw["target_modules"]),
            "base_model_name_or_path": about.base_uri,
            "inference_mode": True,
        }
        (folder / CONFIG).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")

    def as_base(self) -> AbstractContextManager[None]:
        """The adapters switched off. See `Method`."""
        return self.model.disable_adapter()


def put_on_lora(model: Any, lora: Lora, *, seed: int) -> LoraMethod:
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
    return LoraMethod(get_peft_model(model, config, autocast_adapter_dtype=True))  # pyright: ignore[reportArgumentType]


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
