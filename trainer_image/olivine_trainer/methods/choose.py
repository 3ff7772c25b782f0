"""Which method a specification names."""

from typing import Any

from olivine_api.finetunejob import Lora, MethodType
from olivine_api.methods import Method as MethodSpec
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.methods.lora import put_on_lora
from olivine_trainer.methods.method import Method


def put_on(base: Any, spec: MethodSpec, *, seed: int) -> Method:
    """The method on a loaded, frozen base model. Raises ConfigurationError for modules that the model does not have."""
    if spec.type is MethodType.LORA:
        return put_on_lora(base, spec.lora or Lora(), seed=seed)
    raise ConfigurationError(Reason.INVALID_SPEC, f"method.type {spec.type.value} is not served by this release: write LoRA")
