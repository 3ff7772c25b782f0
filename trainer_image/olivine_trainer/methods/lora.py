"""LoRA (Hu et al. 2021) by peft: injected, saved in peft's layout with canonical bytes, loaded again."""

import json
import tempfile
import warnings
from collections.abc import Sequence
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
from olivine_trainer.methods.method import About, labels_of, save_tensors
from olivine_trainer.modeling.forward import head_of

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LABELS = "labels.json"


@dataclass(frozen=True)
class LoraMethod:
    """Adapters beside frozen linear modules. See `Method`."""

    model: PeftModel
    kind: ArtifactKind = "Adapter"

    @property
    def causal(self) -> Any:
        """See `Method`."""
        return self.model.get_base_model()

    @property
    def adapted_modules(self) -> list[str]:
        """See `Method`."""
        names: Any = self.model.base_model.targeted_module_names
        return sorted(names)

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
            "modules_to_save": sorted(set(raw["modules_to_save"])) if raw["modules_to_save"] else None,
            "base_model_name_or_path": about.base_uri,
            "inference_mode": True,
        }
        (folder / CONFIG).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
        if labels := labels_of(self.causal):
            (folder / LABELS).write_text(json.dumps(labels, ensure_ascii=False, indent=2) + "\n")

    def as_base(self) -> AbstractContextManager[None]:
        """The adapters switched off. See `Method`."""
        return self.model.disable_adapter()


def put_on_lora(model: Any, lora: Lora, *, seed: int) -> LoraMethod:
    """Inject adapters, initialised from `seed`; only they and the modules to save require gradients.

    Raises ConfigurationError where a target or a module to save is not the model's, naming those that are.
    """
    classifies = hasattr(model, "score")
    saved = resolve_saved(model, [*(lora.modules_to_save or []), *(["score"] if classifies else [])])
    targets = resolve_targets(model, lora.target_modules, saved)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  (typed int, used as a number)
        lora_dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=saved or None,
        use_rslora=lora.rs_lora,
        bias="none",
        task_type="SEQ_CLS" if classifies else "CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # A head tied to the embeddings is trained as a copy of its own; the embeddings stay the base's. That is meant.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        # A Conv1D holds its weight transposed: peft sees that for itself, and says so.
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=True)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # copies of the base's modules come in the base's format
    return LoraMethod(adapted)


def linear_names(model: Any) -> list[str]:
    """Last names of the linear modules but the head, sorted (q_proj, …): what an adapter can be put onto."""
    head = head_of(model)
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    return sorted(found)


def resolve_targets(model: Any, asked: list[str] | None, saved: Sequence[str] = ()) -> list[str]:
    """The targets, sorted; by default every linear module but the head and what is trained whole."""
    known = linear_names(model)
    if asked is None:
        return [name for name in known if not any(_names(whole, name) for whole in saved)]
    full = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    missing = [target for target in asked if not any(_names(name, target) for name in full)]
    if missing:
        raise ConfigurationError(
            Reason.TARGET_MODULES_NOT_FOUND,
            f"method.lora.targetModules names {', '.join(sorted(missing))}, which this model does not have; its linear modules are:"
            f" {', '.join(known)}",
        )
    twice = sorted(
        {target for target in asked for name in full if _names(name, target) and any(_names(name, one) for one in saved)}
    )
    if twice:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"method.lora.targetModules and modulesToSave both have {', '.join(twice)}: an adapter on a module that is trained whole"
            " adds nothing, so leave it in one of them",
        )
    return sorted(set(asked))


def resolve_saved(model: Any, asked: Sequence[str]) -> list[str]:
    """The modules that are trained whole, sorted; by their full names where peft would take more for them than are meant.

    Raises ConfigurationError for a name that no module has, and for a module whose weights are quantised.
    """
    modules = {name: module for name, module in model.named_modules() if name and any(True for _ in module.parameters())}
    found: set[str] = set()
    for wanted in asked:
        meant = [name for name in modules if _names(name, wanted)]
        if not meant:
            known = sorted({name.rpartition(".")[2] for name in modules if not name.rpartition(".")[2].isdigit()})
            raise ConfigurationError(
                Reason.TARGET_MODULES_NOT_FOUND,
                f"method.lora.modulesToSave names {wanted}, which this model does not have; its modules are: {', '.join(known)}",
            )
        if any(not parameter.is_floating_point() for name in meant for parameter in modules[name].parameters()):
            raise ConfigurationError(
                Reason.INVALID_SPEC,
                f"method.lora.modulesToSave names {wanted}, whose weights method.type QLoRA quantises: such weights cannot be trained;"
                " name it in method.lora.targetModules, or write method.type LoRA",
            )
        taken_by_peft = [name for name in modules if name.endswith(wanted)]
        found.update([wanted] if taken_by_peft == meant else meant)
    return sorted(found)


def _names(full: str, short: str) -> bool:
    """Whether a module is meant by the end of its name (lm_head, mlp.c_proj)."""
    return full == short or full.endswith(f".{short}")
