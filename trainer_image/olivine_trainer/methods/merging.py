"""The whole model with a LoRA adapter folded in, and the proof that it computes the same."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from olivine_trainer.methods.full import write_model
from olivine_trainer.modeling.loading import fitted_to, load_model, load_tokenizer

# Measured: 2e-6 on 32-wide models, 8e-5 on SmolLM2-135M at rank 16 (docs/decisions/0096); a lost module is off by whole units.
MERGE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Base:
    """The unquantised base model's files."""

    folder: Path
    uri: str
    labels: Sequence[str] = ()
    """Of a classifier."""
    trust_remote_code: bool = False

    def load(self) -> Any:
        """In fp32, on the CPU."""
        return self.load_from(self.folder)

    def load_from(self, folder: Path) -> Any:
        """A model of the same kind from another folder."""
        labels, trusted = self.labels, self.trust_remote_code
        return load_model(folder, self.uri, torch.float32, labels=labels, trust_remote_code=trusted).eval()


def merge_adapter(base: Base, adapter: Path, target: Path, texts: Sequence[Sequence[int]]) -> float:
    """Write the merged model into `target`, load it back, and return the largest difference of a logit from base and adapter side by side.

    Needs the memory of one fp32 model. Infinite where a logit is no number.
    """
    model = base.load()
    tokenizer = fitted_to(model, load_tokenizer(base.folder, base.uri, trust_remote_code=base.trust_remote_code))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")  # cared for here
        adapted: Any = PeftModel.from_pretrained(model, str(adapter)).eval()
        wanted = [_logits(adapted, text) for text in texts]
        _separate_head(model)
        merged = adapted.merge_and_unload()
    _untie(merged)
    write_model(merged, target, tokenizer.backend)
    del model, adapted, merged
    found = base.load_from(target)
    return max(_worst(logits, _logits(found, text)) for logits, text in zip(wanted, texts, strict=True))


def _separate_head(model: Any) -> None:
    """An adapter on a head that is tied to the embeddings: folding it in must not change them, too."""
    head = getattr(model.get_output_embeddings(), "base_layer", None)
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _untie(model: Any) -> None:
    """A head that was trained as a copy (modulesToSave) is one of its own: loading must not tie it to the embeddings again."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config()
    if head is None or not config.tie_word_embeddings or head.weight is table.weight:
        return
    config.tie_word_embeddings = model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


@torch.no_grad()
def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()


def _worst(one: torch.Tensor, other: torch.Tensor) -> float:
    difference = float((one - other).abs().max())
    return difference if math.isfinite(difference) else math.inf
