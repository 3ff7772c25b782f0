"""What a loss of the user's own is called with: the model's outputs over whole rows, and the batch in Hugging Face's terms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from olivine_trainer.modeling.forward import Batch, head_of

IGNORED = -100  # as a label: the token does not count


class Outputs:
    """What the model made of one text a row, in fp32."""

    def __init__(
        self, last_hidden_state: torch.Tensor, attention_mask: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.last_hidden_state = last_hidden_state
        """[rows, tokens, width]; padding is part of it."""
        self.attention_mask = attention_mask
        """[rows, tokens]; 1 where there is a token"""
        self._head = logits
        self._logits: torch.Tensor | None = None

    @property
    def logits(self) -> torch.Tensor:
        """[rows, tokens, vocabulary]; position p predicts token p + 1. Computed when first asked for."""
        if self._logits is None:
            self._logits = self._head(self.last_hidden_state)
        return self._logits

    @property
    def pooled(self) -> torch.Tensor:
        """[rows, width]; the mean of a row's hidden states, padding left out: the text as one vector."""
        mask = self.attention_mask.unsqueeze(-1).to(self.last_hidden_state.dtype)
        return (self.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1)


@dataclass(frozen=True)
class OwnBatch:
    """Rows of one text each."""

    input_ids: torch.Tensor
    """[rows, tokens]"""
    attention_mask: torch.Tensor
    """[rows, tokens]; 1 where there is a token"""
    labels: torch.Tensor
    """[rows, tokens]; the token where it is learned, -100 elsewhere; not shifted"""


@dataclass(frozen=True)
class OwnPairs:
    """Rows of two texts and a label each."""

    left: OwnBatch
    right: OwnBatch
    label: torch.Tensor
    """[rows], fp32"""


def model_outputs(causal: Any, batch: Batch, *, split_head: bool) -> Outputs:
    """One forward pass over whole rows."""
    if split_head:
        hidden = causal.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
        head = head_of(causal)
        return Outputs(hidden.float(), batch.mask, lambda states: head(states.to(hidden.dtype)).float())
    whole = causal(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, output_hidden_states=True)
    logits = whole.logits
    return Outputs(whole.hidden_states[-1].float(), batch.mask, lambda _: logits.float())


def own_batch(batch: Batch) -> OwnBatch:
    """The batch as the user's class sees it."""
    labels = torch.full_like(batch.ids, IGNORED)
    labels.view(-1)[batch.positions + 1] = batch.labels
    return OwnBatch(input_ids=batch.ids, attention_mask=batch.mask, labels=labels)
