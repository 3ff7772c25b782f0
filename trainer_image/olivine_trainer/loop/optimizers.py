"""Optimizers by their names in transformers, their groups, and their state as tensors and numbers that outlive the process."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.optimization import Adafactor

from olivine_api.finetunejob import Optimizer, Training
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.methods.method import trainable
from olivine_trainer.world.shards import divided_like

_KEPT_WHOLE = 4096  # numbers; bitsandbytes keeps smaller parameters' state in fp32: there is nothing to gain


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer over all trained parameters. Raises ConfigurationError where it does not run on this device."""
    groups = decay_groups(trainable(model), training.weight_decay)
    rate = training.learning_rate
    match training.optimizer:
        case Optimizer.ADAMW_TORCH:
            return torch.optim.AdamW(groups, lr=rate)
        case Optimizer.ADAMW_TORCH_FUSED:
            return torch.optim.AdamW(groups, lr=rate, fused=True)
        case Optimizer.SGD:
            return torch.optim.SGD(groups, lr=rate)
        case Optimizer.ADAFACTOR:
            # As transformers' Trainer: the schedule's rate, not one of its own.
            return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
        case Optimizer.ADAMW_8BIT | Optimizer.PAGED_ADAMW_8BIT:
            return _of_8_bits(groups, training)


def decay_groups(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (biases, norms) do not."""
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters.values() if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters.values() if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _of_8_bits(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
    paged = training.optimizer is Optimizer.PAGED_ADAMW_8BIT
    if paged and not torch.cuda.is_available():
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            "training.optimizer paged_adamw_8bit moves its state between a CUDA device and the host, and this pod has no such device:"
            " write adamw_8bit or adamw_torch",
        )
    import bitsandbytes.optim  # noqa: PLC0415  (seconds: only where it is used)

    known: Any = bitsandbytes.optim
    make = known.PagedAdamW8bit if paged else known.AdamW8bit
    return make(groups, lr=training.learning_rate, weight_decay=training.weight_decay)


def _to_host(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu()


def state_tensors(
    optimizer: Any, parameters: Mapping[str, nn.Parameter], whole: Callable[[torch.Tensor], torch.Tensor] = _to_host
) -> dict[str, torch.Tensor]:
    """The state's tensors as `<parameter>|<key>`: names outlive the order of parameters. `whole` brings one to the CPU."""
    tensors = {key: whole(value) for key, value in _state(optimizer, parameters).items() if isinstance(value, torch.Tensor)}
    # bitsandbytes shares its tables among parameters, which safetensors does not write.
    return {key: value.clone() if "|qmap" in key else value.contiguous() for key, value in tensors.items()}


def state_numbers(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """The rest of it, JSON-able, under the same names: counts, mostly."""
    return {key: value for key, value in _state(optimizer, parameters).items() if isinstance(value, int | float)}


def restore(
    optimizer: Any, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]
) -> None:
    """Put back what the two functions above gave, on each parameter's device."""
    raw = _raw(optimizer)
    for full, value in {**tensors, **numbers}.items():
        name, _, key = full.rpartition("|")
        parameter = parameters[name]
        raw.state[parameter][key] = _placed(raw, parameter, key, value) if isinstance(value, torch.Tensor) else value


def _placed(raw: Any, parameter: nn.Parameter, key: str, value: torch.Tensor) -> torch.Tensor:
    if key == "step" and not raw.defaults.get("fused"):
        return value  # AdamW counts on the CPU, but for the fused one
    if key in ("state1", "state2") and hasattr(raw, "get_state_buffer"):
        return raw.get_state_buffer(parameter, dtype=value.dtype).copy_(value)  # paged, where bitsandbytes pages
    return divided_like(value.to(parameter.device), parameter)


def _state(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    states = _raw(optimizer).state
    return {
        f"{name}|{key}": value for name, parameter in parameters.items() for key, value in sorted(states.get(parameter, {}).items())
    }


def _raw(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


def state_bytes(name: Optimizer, parameters: Mapping[str, nn.Parameter]) -> int:
    """What the state of all parameters takes once the first step is done."""
    return sum(_bytes_of(name, parameter) for parameter in parameters.values())


def present_bytes(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> int:
    """What it takes now: nothing before the first step, all of it after a resume."""
    state = _state(optimizer, parameters).values()
    return sum(held_numbers(value) * value.element_size() for value in state if isinstance(value, torch.Tensor))


def held_numbers(value: torch.Tensor) -> int:
    """How many of a tensor's numbers this rank holds: its part of a divided one."""
    return value.to_local().numel() if isinstance(value, DTensor) else value.numel()


def _bytes_of(name: Optimizer, parameter: nn.Parameter) -> int:
    size = held_numbers(parameter)
    match name:
        case Optimizer.ADAMW_TORCH | Optimizer.ADAMW_TORCH_FUSED:
            return 2 * size * parameter.element_size()
        case Optimizer.SGD:
            return 0
        case Optimizer.ADAFACTOR:
            if parameter.ndim < 2:
                return 4 * size
            *_, rows, columns = parameter.shape
            return 4 * (size // columns + size // rows)
        case Optimizer.ADAMW_8BIT | Optimizer.PAGED_ADAMW_8BIT:
            return 2 * size + 2 * 4 * (size // 256) if size >= _KEPT_WHOLE else 2 * 4 * size
