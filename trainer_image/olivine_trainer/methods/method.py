"""The seam between the loop and the methods: what each of them does to a base model, and with what it has learned."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from olivine_api.status import ArtifactKind


@dataclass(frozen=True)
class About:
    """What an artifact says of its base."""

    base_uri: str
    tokenizer: Any
    """A transformers tokenizer; a whole model is published with it."""


class Method(Protocol):
    """A base model with something in it that is trained. Each implementation is made by a function that puts it on."""

    @property
    def kind(self) -> ArtifactKind:
        """What is published."""
        ...

    @property
    def model(self) -> nn.Module:
        """Holds every parameter; the trained ones require gradients."""
        ...

    @property
    def causal(self) -> Any:
        """The transformers model itself, what is trained included: it is called, and generates."""
        ...

    @property
    def adapted_modules(self) -> list[str]:
        """Full names of the modules that have an adapter; none where the model itself is trained."""
        ...

    def save_weights(self, path: Path) -> None:
        """Everything that was trained, to one safetensors file: the same weights give the same bytes."""
        ...

    def load_weights(self, path: Path) -> None:
        """Put back what `save_weights` wrote, bit for bit. Raises ValueError where the tensors are another model's."""
        ...

    def export(self, folder: Path, about: About) -> None:
        """The artifact's files, with canonical bytes: the same weights give the same digest."""
        ...

    def as_base(self) -> AbstractContextManager[None]:
        """While it is open, `causal` computes what the base model computes.

        Raises StorageUnavailableError where the base is no more: a model that is trained whole is its own base only before step 1.
        """
        ...


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name, sorted: the order in which optimizer state is kept."""
    return dict(sorted((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad))


def save_tensors(tensors: Iterable[tuple[str, torch.Tensor]], path: Path) -> None:
    """Contiguous, on the CPU, sorted by name: canonical bytes."""
    ordered = dict(sorted((name, tensor.detach().cpu().contiguous()) for name, tensor in tensors))
    save_file(ordered, path, metadata={"format": "pt"})


def labels_of(model: Any) -> list[str]:
    """A classifier's labels, in the order of its logits; empty for a causal model."""
    if not hasattr(model, "score"):
        return []
    names: dict[int, str] = model.config.id2label
    return [names[index] for index in range(len(names))]
