"""An adapter as the graph takes it, whatever file it came from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.bundle.slots import Floats, Slot
from olivine_trainer.faults import is_machine_fault


@dataclass(frozen=True)
class SlotAdapter:
    """One adapter: what it puts into each slot that it uses."""

    rank: int
    """The largest of its ranks."""
    targets: list[str]
    """Last names of the modules that it changes, sorted."""
    scaling: dict[str, float]
    """What B was multiplied by, by slot; empty for a bottleneck."""
    slots: list[Slot]
    tensors: dict[str, Floats]
    """By the names of the graph's inputs."""


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object. Raises RejectedError where it is none."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        if is_machine_fault(error):
            raise
        raise RejectedError(f"{path.name} cannot be read ({error}): upload the adapter again") from None
    if not isinstance(config, dict):
        raise RejectedError(f"{path.name} is not a JSON object: upload the adapter again")
    return config


def read_tensors(path: Path) -> dict[str, Floats]:
    """All tensors of a safetensors file in fp32. Raises RejectedError where it is damaged, or holds what is no number."""
    try:
        found = _load(path)
    except FileNotFoundError:
        raise RejectedError(f"there is no {path.name}: upload the adapter again") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if is_machine_fault(error):
            raise
        raise RejectedError(f"{path.name} is truncated or damaged ({error}): upload the adapter again") from None
    for name, tensor in found.items():
        if not np.isfinite(tensor).all():
            raise RejectedError(f"{name} holds NaN or infinite values: train it again with a lower learning rate")
    return found


def _load(path: Path) -> dict[str, Floats]:
    try:
        raw = load_file(path)
    except (TypeError, AttributeError):  # numpy has no bfloat16
        from safetensors.torch import load_file as load_torch  # noqa: PLC0415

        return {name: tensor.float().numpy() for name, tensor in load_torch(path).items()}
    return {name: np.asarray(tensor, np.float32) for name, tensor in raw.items()}


def check_shape(name: str, tensor: Floats, expected: tuple[int, ...], module: str) -> None:
    """Raises RejectedError where a tensor was made for another base."""
    if tensor.shape != expected:
        raise RejectedError(
            f"{name} has the shape {list(tensor.shape)}, but {module} of this base needs {list(expected)}:"
            " it was trained on another base model, or its file is wrong"
        )
