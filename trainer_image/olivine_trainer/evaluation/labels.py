"""Classification by scores: the label that the model gives most probability after the prompt, its stop token included.

An answer always is a label then, where free generation may say anything; a tie goes to the label that comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from olivine_trainer.evaluation.loss import Tick
from olivine_trainer.evaluation.sharing import answered
from olivine_trainer.evaluation.tree import LabelTree
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import collate, learned_logits
from olivine_trainer.world.world import World

_PROBE_TOLERANCE = 1e-2  # nats a label: the two ways differ by rounding only, in mixed precision too


@dataclass(frozen=True)
class LabelScorer:
    """Scores all labels behind a batch of prompts."""

    causal: Any
    split_head: bool
    """Whether the model is called in two halves; see `learned_logits`."""
    texts: tuple[str, ...]
    """The labels as answers."""
    ids: tuple[tuple[int, ...], ...]
    """Their tokens, the stop token last."""
    tree: LabelTree
    as_tree: bool
    """One forward for all labels of a row; else each label is a row of its own."""
    pad_id: int
    device: torch.device

    def answers(self, examples: Sequence[Example], *, batch_size: int, tick: Tick, world: World) -> list[str]:
        """The best label of each row, in the order of `examples`."""
        self.causal.eval()
        rows = self._rows_at_once(examples, batch_size) if self.as_tree else batch_size

        def best(members: list[Example]) -> list[str]:
            return [self.texts[first_best(row)] for row in self.scores(members, batch_size).tolist()]

        return answered(examples, rows, best, tick=tick, world=world)

    def scores(self, examples: Sequence[Example], batch_size: int) -> torch.Tensor:
        """[rows, labels] fp64; log probabilities."""
        if self.as_tree:
            return _tree_scores(self, examples)
        return _row_scores(self, examples, batch_size)

    def _rows_at_once(self, examples: Sequence[Example], batch_size: int) -> int:
        """As many tokens as a batch of plain rows has: that is what memory is known to hold."""
        longest = max(len(example.ids) for example in examples)
        return max(1, batch_size * longest // (longest + self.tree.size))


def first_best(scores: Sequence[float]) -> int:
    """The index of the highest score; of the first where several are equal."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def make_scorer(
    causal: Any,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    *,
    split_head: bool,
    pad_id: int,
    device: torch.device,
    longest: int,
) -> LabelScorer:
    """A scorer over the labels; whether the model can read a tree is tried. `longest`: tokens of the longest row."""
    tree = LabelTree.of(ids)
    scorer = LabelScorer(
        causal, split_head, tuple(texts), tuple(tuple(one) for one in ids), tree, as_tree=True, pad_id=pad_id, device=device
    )
    return scorer if can_read_tree(scorer, longest) else replace(scorer, as_tree=False)


@torch.no_grad()
def can_read_tree(scorer: LabelScorer, longest: int) -> bool:
    """Whether a tree behind a prompt scores as plain rows do: tried on two short prompts.

    A model whose attention is shorter than the rows would see more in the tree than it does in plain rows.
    """
    window = getattr(scorer.causal.config, "sliding_window", None)
    if isinstance(window, int) and window < longest:
        return False
    training = scorer.causal.training
    scorer.causal.eval()
    try:
        prompts = [_prompt([token % 8 + 2 for token in range(length)]) for length in (7, 4)]
        few = replace(scorer, texts=scorer.texts[:8], ids=scorer.ids[:8], tree=LabelTree.of(scorer.ids[:8]))
        plain, tree = _row_scores(few, prompts, 8), _tree_scores(few, prompts)
        return bool((plain - tree).abs().max() <= _PROBE_TOLERANCE * max(len(one) for one in few.ids))
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
        return False  # this model takes no mask or positions of that form
    finally:
        scorer.causal.train(training)


def _prompt(ids: Sequence[int]) -> Example:
    return Example(ids=np.asarray(ids, dtype=np.int32), learned=np.zeros(len(ids), dtype=np.bool_), prompt_length=len(ids))


@torch.no_grad()
def _tree_scores(scorer: LabelScorer, examples: Sequence[Example]) -> torch.Tensor:
    tree, device = scorer.tree, scorer.device
    width = max(example.prompt_length for example in examples) + tree.size
    ids = np.full((len(examples), width), scorer.pad_id, dtype=np.int64)
    positions = np.zeros((len(examples), width), dtype=np.int64)
    sees = np.zeros((len(examples), width, width), dtype=np.bool_)
    sees[:, np.arange(width), np.arange(width)] = True  # padding sees itself: a softmax over nothing is no number
    for row, example in enumerate(examples):
        start, end = example.prompt_length, example.prompt_length + tree.size
        ids[row, :start] = example.prompt_ids
        ids[row, start:end] = tree.tokens
        positions[row, :start] = np.arange(start)
        positions[row, start:end] = start + tree.depths
        sees[row, :start, :start] = np.tri(start, dtype=np.bool_)
        sees[row, start:end, :start] = True
        sees[row, start:end, start:end] = tree.sees
    dtype = scorer.causal.get_input_embeddings().weight.dtype
    allowed = torch.from_numpy(sees).to(device)[:, None]
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, torch.finfo(dtype).min)
    called = {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": mask,
        "position_ids": torch.from_numpy(positions).to(device),
        "use_cache": False,
    }
    whole = scorer.causal.base_model(**called).last_hidden_state if scorer.split_head else scorer.causal(**called).logits
    head = scorer.causal.get_output_embeddings() if scorer.split_head else torch.nn.Identity()
    steps = [(label, node + 1, token) for label, path in enumerate(tree.steps) for node, token in path]
    labels, nodes, tokens = (torch.tensor(column, device=device) for column in zip(*steps, strict=True))
    scores: list[torch.Tensor] = []
    for row, example in enumerate(examples):  # row by row: all logits of a batch at once would be the largest tensor of all
        start = example.prompt_length
        logits = head(whole[row, start - 1 : start + tree.size]).float()
        found = torch.log_softmax(logits, dim=-1)[nodes, tokens].double().cpu()
        scores.append(torch.zeros(len(tree.steps), dtype=torch.float64).index_add_(0, labels.cpu(), found))
    return torch.stack(scores)


@torch.no_grad()
def _row_scores(scorer: LabelScorer, examples: Sequence[Example], batch_size: int) -> torch.Tensor:
    rows = [_with_label(example, label) for example in examples for label in scorer.ids]
    scores: list[float] = []
    for start in range(0, len(rows), batch_size):
        members = rows[start : start + batch_size]
        batch = collate(members, scorer.pad_id, scorer.device)
        logits = learned_logits(scorer.causal, batch.ids, batch.mask, batch.positions, split_head=scorer.split_head).float()
        found = torch.log_softmax(logits, dim=-1).gather(1, batch.labels[:, None])[:, 0].double().cpu()
        scores += [float(part.sum()) for part in found.split([row.learned_tokens for row in members])]
    return torch.tensor(scores, dtype=torch.float64).reshape(len(examples), len(scorer.ids))


def _with_label(example: Example, label: Sequence[int]) -> Example:
    start = example.prompt_length
    ids = np.concatenate([example.prompt_ids, np.asarray(label, dtype=np.int32)])
    return Example(ids=ids, learned=np.arange(len(ids)) >= start, prompt_length=start)
