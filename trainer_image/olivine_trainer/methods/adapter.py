"""Bottleneck adapters: a small two-layer network after a block's output projection, added to what the projection gives.

Houlsby et al. 2019 put one after attention and one after the MLP of every block, Pfeiffer et al. 2021 only the second. The upper
layer starts at zero, so that the adapted model starts as the base. docs/adapters.md describes the files, with a loader.
"""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from olivine_api.methods import Bottleneck
from olivine_api.reasons import Reason
from olivine_api.status import ArtifactKind
from olivine_trainer.errors import ModelError
from olivine_trainer.methods.method import About, labels_of, save_tensors

FORMAT = "olivine-adapter/1"
WEIGHTS = "adapter.safetensors"
CONFIG = "adapter.json"
_INITIAL_SPREAD = 0.02  # of the lower layer, as of most models' own layers
_ATTENTION, _MLP = ("self_attn", "attn", "attention"), ("mlp", "feed_forward")
_PROJECTIONS = {True: ("o_proj", "out_proj", "dense", "c_proj"), False: ("down_proj", "fc2", "c_proj", "dense_4h_to_h")}
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class Adapted(nn.Module):
    """A projection followed by its adapter: h + up(activation(down(h)))."""

    def __init__(self, projection: nn.Module, hidden: int, spec: Bottleneck, device: torch.device) -> None:
        super().__init__()
        self.projection = projection
        self.down = nn.Linear(hidden, spec.bottleneck, device=device, dtype=torch.float32)
        self.up = nn.Linear(spec.bottleneck, hidden, device=device, dtype=torch.float32)
        nn.init.normal_(self.down.weight, std=_INITIAL_SPREAD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.activation = _ACTIVATIONS[spec.activation]
        self.enabled = True

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[…, hidden], in the projection's number format."""
        hidden = self.projection(inputs)
        if not self.enabled:
            return hidden
        # Without autocast (a plain call) the layers want their own format.
        lowered = hidden if torch.is_autocast_enabled(hidden.device.type) else hidden.to(self.down.weight.dtype)
        return hidden + self.up(self.activation(self.down(lowered))).to(hidden.dtype)


@dataclass(frozen=True)
class AdapterMethod:
    """Adapters after frozen projections. See `Method`."""

    model: Any
    spec: Bottleneck
    adapted: dict[str, Adapted]
    """By the projection's name in the base model, sorted."""
    first_head: torch.Tensor | None
    """A classifier's head before training; the base is measured with it, whatever was loaded since."""
    kind: ArtifactKind = "Adapter"

    @property
    def causal(self) -> Any:
        """See `Method`."""
        return self.model

    @property
    def adapted_modules(self) -> list[str]:
        """See `Method`."""
        return list(self.adapted)

    def save_weights(self, path: Path) -> None:
        """See `Method`."""
        save_tensors(self._tensors().items(), path)

    def load_weights(self, path: Path) -> None:
        """See `Method`."""
        saved, own = load_file(path), self._tensors()
        if saved.keys() != own.keys():
            odd = sorted(saved.keys() ^ own.keys())
            raise ValueError(f"the saved adapter and the model's differ in {len(odd)} tensors, e.g. {odd[0]}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def export(self, folder: Path, about: About) -> None:
        """Weights, and a description that a loader needs. See `Method`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(folder / WEIGHTS)
        described = {
            "format": FORMAT,
            "base_model_name_or_path": about.base_uri,
            **self.spec.to_json_dict(),
            "modules": list(self.adapted),
            **({"labels": labels} if (labels := labels_of(self.model)) else {}),
        }
        (folder / CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")

    @contextmanager
    def as_base(self) -> Generator[None]:
        """The adapters switched off, a classifier's head as it was before training. See `Method`."""
        self._switch(on=False)
        head = self._change_head(self.first_head)
        try:
            yield
        finally:
            self._change_head(head)
            self._switch(on=True)

    @torch.no_grad()
    def _change_head(self, numbers: torch.Tensor | None) -> torch.Tensor | None:
        """What it was before."""
        if numbers is None:
            return None
        before = self.model.score.weight.detach().clone()
        self.model.score.weight.copy_(numbers)
        return before

    def _switch(self, *, on: bool) -> None:
        for module in self.adapted.values():
            module.enabled = on

    def _tensors(self) -> dict[str, torch.Tensor]:
        """`<projection>.down.weight` and so on."""
        head = {"score.weight": self.model.score.weight} if hasattr(self.model, "score") else {}
        return head | {
            f"{name}.{layer}.{part}": getattr(getattr(module, layer), part)
            for name, module in self.adapted.items()
            for layer in ("down", "up")
            for part in ("weight", "bias")
        }


def put_on_adapter(base: Any, spec: Bottleneck, *, seed: int) -> AdapterMethod:
    """Adapters, initialised from `seed`, into a frozen base. Raises ModelError where its blocks have another form."""
    hidden = int(base.config.get_text_config().hidden_size)
    torch.manual_seed(seed)
    adapted: dict[str, Adapted] = {}
    for name in output_projections(base, houlsby=spec.placement == "Houlsby"):
        parent, _, last = name.rpartition(".")
        projection = base.get_submodule(name)
        device = next(projection.parameters()).device
        adapted[name] = Adapted(projection, hidden, spec, device)
        setattr(base.get_submodule(parent), last, adapted[name])
    first_head: torch.Tensor | None = None
    if hasattr(base, "score"):
        base.score.float().requires_grad_(True)  # a classifier's head is trained whole
        first_head = base.score.weight.detach().clone()
    return AdapterMethod(model=base, spec=spec, adapted=dict(sorted(adapted.items())), first_head=first_head)


def output_projections(base: Any, *, houlsby: bool) -> list[str]:
    """The last linear module of each block's MLP, and with `houlsby` of its attention, by its full name.

    Raises ModelError where a block of the model has no such module.
    """
    found: list[str] = []
    blocks = [name for name, module in base.named_modules() if name.rpartition(".")[2].isdigit() and _has(module, _MLP)]
    for block in blocks:
        for parts, in_attention in ((_ATTENTION, True), (_MLP, False)):
            if in_attention and not houlsby:
                continue
            projection = _projection(base.get_submodule(block), parts, _PROJECTIONS[in_attention])
            if projection is None:
                raise _unsupported(base, f"{block} has no {' or '.join(parts)} that ends in one of {_PROJECTIONS[in_attention]}")
            found.append(f"{block}.{projection}")
    if not found:
        raise _unsupported(base, "no block with an MLP was found in it")
    return found


def _has(module: nn.Module, parts: tuple[str, ...]) -> bool:
    return any(hasattr(module, part) for part in parts)


def _projection(block: nn.Module, parts: tuple[str, ...], projections: tuple[str, ...]) -> str | None:
    for part in parts:
        for projection in projections:
            if hasattr(getattr(block, part, None), projection):
                return f"{part}.{projection}"
    return None


def _unsupported(base: Any, why: str) -> ModelError:
    return ModelError(
        Reason.MODEL_UNSUPPORTED,
        f"method.type Adapter has no place in a {type(base).__name__}: {why}; write method.type LoRA or Full,"
        " or take a model of the families Llama, Phi, Qwen, Gemma or GPT-2",
    )
