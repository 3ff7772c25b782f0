"""PyTorch's own answers: the fp32 base, and adapters as peft or the trainer puts them on."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from olivine_trainer.bundle.bottleneck_reader import CONFIG as BOTTLENECK
from olivine_trainer.bundle.bottleneck_reader import WEIGHTS, bottleneck_of
from olivine_trainer.bundle.slots import Floats
from olivine_trainer.modeling.loading import load_model, load_tokenizer


class Reference:
    """A causal model in fp32."""

    def __init__(self, folder: Path, uri: str) -> None:
        """`uri`: what an error calls the model. Raises ModelError where it cannot be loaded."""
        self.model: Any = load_model(folder, uri, torch.float32).eval()
        self.tokenizer: Any = load_tokenizer(folder, uri).backend

    def adapted(self, adapter: Path) -> Any:
        """A model with an adapter on it, that shares the base's weights; the base itself stays as it is."""
        if (adapter / BOTTLENECK).is_file():
            from olivine_trainer.methods.adapter import put_on_adapter  # noqa: PLC0415

            method = put_on_adapter(_shallow(self.model), bottleneck_of(adapter), seed=0)
            method.load_weights(adapter / WEIGHTS)
            return method.causal.eval()
        from peft import PeftModel  # noqa: PLC0415

        return PeftModel.from_pretrained(_shallow(self.model), str(adapter)).eval()


def _shallow(model: Any) -> Any:
    """A copy of the modules that shares the weights."""
    shared = {id(parameter): parameter for parameter in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


@torch.no_grad()
def logits(model: Any, ids: Sequence[int]) -> Floats:
    """[tokens, vocabulary] of one text."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()


@torch.no_grad()
def answer(model: Any, ids: Sequence[int], count: int, stops: frozenset[int]) -> list[int]:
    """The greedy answer, at most `count` tokens, up to and with a stop token."""
    given = list(ids)
    past: Any = None
    fresh = given
    made: list[int] = []
    while len(made) < count and not (made and made[-1] in stops):
        out = model(input_ids=torch.tensor([fresh]), past_key_values=past, use_cache=True)
        past = out.past_key_values
        made.append(int(out.logits[0, -1].argmax()))
        fresh = made[-1:]
    return made
