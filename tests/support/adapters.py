"""Random adapters for a tiny model, in the layouts that people have: peft directories and Olivine's own."""

from pathlib import Path
from typing import Any


def make_peft(model: Path, folder: Path, *, seed: int = 1, spread: float = 0.2, **config: Any) -> Path:
    """A LoRA adapter with random weights (peft starts B at zero), saved by peft; returns the folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model)
    settings: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], **config}
    peft: Any = get_peft_model(base, LoraConfig(**settings))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=spread)
    peft.save_pretrained(folder)
    return folder


def make_bottleneck(model: Path, folder: Path, *, seed: int = 1, spread: float = 0.2, **spec: Any) -> Path:
    """A bottleneck adapter with random weights; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    from olivine_api.methods import Bottleneck
    from olivine_trainer.methods.adapter import put_on_adapter
    from olivine_trainer.methods.method import About, trainable

    base = AutoModelForCausalLM.from_pretrained(model).requires_grad_(False)
    method = put_on_adapter(base, Bottleneck.model_validate({"bottleneck": 8, **spec}), seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(method.model).values():
            parameter.normal_(std=spread)
    method.export(folder, About(base_uri=model.as_uri(), tokenizer=None))
    return folder
