"""Slots: the places of the graph that can take an adapter, each with the inputs that carry it.

A slot is named by the graph's own name of the projection and by what fits into it: `layers.0.attn.q_proj.lora`, or
`layers.0.mlp.down_proj.relu` for a bottleneck with that activation.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from olivine_api.base import ApiModel

Floats = npt.NDArray[np.float32]
Kind = Literal["lora", "relu", "gelu", "silu", "tanh"]

_MODULE = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.(self_attn|attn|mlp)\.(\w+)$")
# What the model builder calls a projection whose module has another name.
_CALLED = {"dense": "o_proj", "out_proj": "o_proj"}


class Slot(ApiModel):
    """One place for adapters of one kind. Frozen, so hashable."""

    projection: str
    """The graph's name of the projection: model.layers.0.attn.q_proj."""
    kind: Kind
    """lora beside the projection, or a bottleneck's activation behind it."""
    inputs: int
    """Width of what goes in: the projection's input for LoRA, its output for a bottleneck."""
    outputs: int

    @property
    def name(self) -> str:
        """Unique in a bundle."""
        return f"{self._place}.{self.kind}"

    @property
    def _place(self) -> str:
        # Short: a graph has these names three times each, every adapter's file once.
        return self.projection.removeprefix("model.")

    @property
    def down(self) -> str:
        """The graph input [inputs, rank]: read in one go, row by row (decision 0099)."""
        return f"{self._place}.A" if self.kind == "lora" else f"{self.name}.down"

    @property
    def up(self) -> str:
        """The graph input [rank, outputs]."""
        return f"{self._place}.B" if self.kind == "lora" else f"{self.name}.up"

    @property
    def down_bias(self) -> str:
        """The graph input [rank]; a bottleneck's only."""
        return f"{self.name}.down_bias"

    @property
    def up_bias(self) -> str:
        """The graph input [outputs], or [1] where there is none; a bottleneck's only."""
        return f"{self.name}.up_bias"

    def empty(self) -> dict[str, Floats]:
        """What stands in for an adapter that has nothing here: rank 0, and for a bias that is added one zero, not a row of them."""
        return {
            name: np.zeros((1,) if name == self.up_bias else [size or 0 for size in shape], np.float32)
            for name, shape in self.shapes().items()
        }

    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The graph's inputs with their sizes; None for what differs between adapters."""
        shapes: dict[str, tuple[int | None, ...]] = {self.down: (self.inputs, None), self.up: (None, self.outputs)}
        if self.kind != "lora":
            shapes |= {self.down_bias: (None,), self.up_bias: (None,)}
        return shapes

    def takes(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be given for one of the inputs."""
        if name == self.up_bias and shape not in ((1,), (self.outputs,)):
            return False
        wanted = self.shapes()[name]
        return len(shape) == len(wanted) and all(size in (None, has) for size, has in zip(wanted, shape, strict=True))


@dataclass(frozen=True)
class Linear:
    """A linear module of the PyTorch model."""

    module: str
    """Its full name: model.layers.0.self_attn.q_proj."""
    inputs: int
    outputs: int

    @property
    def last(self) -> str:
        """q_proj."""
        return self.module.rpartition(".")[2]

    @property
    def projection(self) -> str | None:
        """The graph's name of it; None where the graph's blocks have no such projection."""
        found = _MODULE.search(self.module)
        if found is None:
            return None
        layer, part, last = found.groups()
        return f"model.layers.{layer}.{'mlp' if part == 'mlp' else 'attn'}.{_CALLED.get(last, last)}"

    def slot(self, kind: Kind) -> Slot | None:
        """Its slot for adapters of a kind."""
        if (projection := self.projection) is None:
            return None
        return Slot(projection=projection, kind=kind, inputs=self.inputs if kind == "lora" else self.outputs, outputs=self.outputs)


def linears_of(model: Any) -> dict[str, Linear]:
    """Every linear module of a causal model but the head, by its full name."""
    from torch import nn  # noqa: PLC0415  (seconds)

    head = model.get_output_embeddings()
    return {
        name: Linear(name, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def choose_slots(used: Iterable[Slot], linears: Mapping[str, Linear], mode: Literal["Union", "AllLinear"]) -> list[Slot]:
    """What some adapter uses and, with AllLinear, a LoRA slot at every linear module; sorted by name."""
    slots = {slot.name: slot for slot in used}
    if mode == "AllLinear":
        slots |= {slot.name: slot for linear in linears.values() if (slot := linear.slot("lora")) is not None}
    return [slots[name] for name in sorted(slots)]
