"""Several rows in one sequence: which go together, and whether a model keeps them apart.

A row's place numbers start over at 0. transformers reads them where it gets no mask and fills no cache, and lets no token see
another row. A model that does not is found by trying, and refused.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import torch

# Attention is computed over the whole sequence, other rows' masked tokens included: that many more of them cost a token as much
# as all its matrix products do. Six times the hidden size, by the usual count of 12 hidden^2 weights a layer; small models' is taken.
_DOUBLED_AT = 3072
_TOLERANCE = 1e-3  # of the largest logit: rounding is far below, a row that is seen by another far above


def bins(lengths: Sequence[int]) -> list[list[int]]:
    """Rows by sequence, into as many sequences of one width as cost least: few tokens of padding, little attention in vain."""
    counts = {max(1, len(lengths) * parts // 8) for parts in range(1, 9)} | set(range(1, min(8, len(lengths)) + 1))
    return min((_divided(lengths, count) for count in sorted(counts)), key=lambda groups: _cost(lengths, groups))


def _divided(lengths: Sequence[int], count: int) -> list[list[int]]:
    """The longest first, each to the shortest sequence so far."""
    filled: list[tuple[int, int, list[int]]] = [(0, index, []) for index in range(count)]
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        taken, index, members = filled[0]
        heapq.heapreplace(filled, (taken + lengths[row], index, [*members, row]))
    return [members for _, _, members in sorted(filled, key=lambda sequence: sequence[1]) if members]


def _cost(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> float:
    """Of a forward, in matrix products of a token."""
    width = max(sum(lengths[row] for row in group) for group in groups)
    return len(groups) * width * (1 + width / _DOUBLED_AT)


@torch.no_grad()
def keeps_rows_apart(causal: Any) -> bool:
    """Whether the logits of two packed rows are those of each row alone: tried on short ones."""
    table = causal.get_input_embeddings().weight
    training = causal.training
    causal.eval()
    try:
        ids = torch.arange(1, 13, device=table.device).remainder(table.shape[0])[None]
        places = torch.cat([torch.arange(5), torch.arange(7)]).to(ids.device)[None]
        packed = _read(causal, ids, None, places).float()
        alone = [_read(causal, one, torch.ones_like(one), None) for one in ids.split([5, 7], 1)]
        wanted = torch.cat(alone, dim=1).float()
        return bool((packed - wanted).abs().max() <= _TOLERANCE * wanted.abs().max().clamp(min=1e-6))
    except TypeError:
        return False  # it takes no places
    finally:
        causal.train(training)


def _read(model: Any, ids: torch.Tensor, mask: torch.Tensor | None, places: torch.Tensor | None) -> torch.Tensor:
    """[rows, tokens, …]; logits, or a classifier's hidden states: its logits are of whole rows."""
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False} | ({} if places is None else {"position_ids": places})
    return model.base_model(**inputs).last_hidden_state if hasattr(model, "score") else model(**inputs).logits
