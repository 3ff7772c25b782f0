"""Full fine-tuning: every weight is trained, in fp32, and the whole model is published."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from olivine_api.status import ArtifactKind
from olivine_trainer.errors import StorageUnavailableError
from olivine_trainer.methods.method import About, save_tensors

_CONFIG = "config.json"


class FullMethod:
    """The model itself. See `Method`."""

    kind: ArtifactKind = "Model"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.causal = model
        self._resumed = False

    @property
    def adapted_modules(self) -> list[str]:
        """See `Method`."""
        return []

    def save_weights(self, path: Path) -> None:
        """Each tensor once: what is tied (embeddings and head) has one name. See `Method`."""
        save_tensors(self._tensors().items(), path)

    def load_weights(self, path: Path) -> None:
        """See `Method`."""
        saved, own = load_file(path), self._tensors()
        if saved.keys() != own.keys():
            odd = sorted(saved.keys() ^ own.keys())
            raise ValueError(f"the saved model and this one differ in {len(odd)} tensors, e.g. {odd[0]}")
        self._resumed = True
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(saved[name])

    def export(self, folder: Path, about: About) -> None:
        """A folder that transformers loads, with its tokenizer. See `Method`."""
        write_model(self.model, folder, about.tokenizer)

    @contextmanager
    def as_base(self) -> Generator[None]:
        """Nothing is switched: before the first step the model is the base. See `Method`."""
        if self._resumed:
            raise StorageUnavailableError(
                "the base model's measurements, which the run's first attempt wrote beside the checkpoints, are gone, and a model that"
                " is trained whole cannot be measured as its base any more: put the file back, or train under a new name"
            )
        yield

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers, each once."""
        kept = self.model.state_dict(keep_vars=True).keys()
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: tensor for name, tensor in named if name in kept}


def write_model(model: Any, folder: Path, tokenizer: Any) -> None:
    """A folder that transformers loads."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    raw: dict[str, Any] = json.loads((folder / _CONFIG).read_text())
    # Training switched the cache off: it would keep keys and values that nobody reads. Generation wants it.
    (folder / _CONFIG).write_text(json.dumps(raw | {"use_cache": True}, indent=2, sort_keys=True) + "\n")
    tokenizer.save_pretrained(folder)


def put_on_full(base: Any) -> FullMethod:
    """Every weight of a base that was loaded in fp32 is trained."""
    base.requires_grad_(True)
    return FullMethod(base)
