"""Which method a specification names, and what it asks of the base model's loading."""

from typing import Any

import torch

from olivine_api.finetunejob import Lora, MethodType
from olivine_api.methods import Bottleneck, Quantization
from olivine_api.methods import Method as MethodSpec
from olivine_trainer.methods.adapter import put_on_adapter
from olivine_trainer.methods.full import put_on_full
from olivine_trainer.methods.lora import put_on_lora
from olivine_trainer.methods.method import Method

_HEAD_SPREAD = 0.02  # most models' own


def put_on(base: Any, spec: MethodSpec, *, seed: int) -> Method:
    """The method on a loaded, frozen base model. Raises ConfigurationError for modules that the model does not have, ModelError
    for a model that has no place for it.
    """
    if hasattr(base, "score"):
        _start_head(base, seed)
    if spec.type is MethodType.FULL:
        return put_on_full(base)
    if spec.type is MethodType.ADAPTER:
        return put_on_adapter(base, spec.adapter or Bottleneck(), seed=seed)
    return put_on_lora(base, spec.lora or Lora(), seed=seed)  # QLoRA's, too: what differs is the base's number format


def _start_head(classifier: Any, seed: int) -> None:
    """The head's numbers, from the seed: loading drew some of its own."""
    weight = classifier.score.weight
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * _HEAD_SPREAD
    with torch.no_grad():
        weight.copy_(drawn)


def base_dtype(spec: MethodSpec, frozen: torch.dtype) -> torch.dtype:
    """The base's number format: `frozen` weights may be short, trained ones are fp32 (a step is smaller than bf16's spacing)."""
    return torch.float32 if spec.type is MethodType.FULL else frozen


def quantization(spec: MethodSpec) -> Quantization | None:
    """How the base is quantised while it is loaded; None where it is not."""
    return (spec.quantization or Quantization()) if spec.type is MethodType.QLORA else None
