"""Rows as tokens: which of them are learned, and what becomes of rows that are too long.

The stop token is learned with every completion: a model that never saw it after an answer does not stop.
Prompt and completion are tokenised apart and joined, so that no token straddles the boundary and generation starts from exactly
the prompt tokens that training saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np

from olivine_api.finetunejob import LossOn, OnOverflow
from olivine_api.reasons import Reason
from olivine_trainer.data.rows import Row
from olivine_trainer.errors import DataError
from olivine_trainer.modeling.example import Example, Pair


def completion_example(tokenizer: Any, prompt: str, completion: str, *, loss_on: LossOn) -> Example:
    """prompt + completion + stop token; the completion and the stop token are learned, with lossOn All the prompt too."""
    head = _encode_start(tokenizer, prompt)
    tail = [*tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]
    learned = [loss_on is LossOn.ALL] * len(head) + [True] * len(tail)
    leading = leading_tokens(tokenizer, head)
    return _example(head + tail, learned, prompt_length=len(head), leading=leading, prompt=prompt, expected=completion)


def text_example(tokenizer: Any, text: str) -> Example:
    """The text and the stop token; all of it is learned."""
    ids = [*_encode_start(tokenizer, text), tokenizer.eos_token_id]
    return _example(ids, [True] * len(ids), prompt_length=0)


def pair_example(tokenizer: Any, left: str, right: str, label: float) -> Example:
    """Two texts, each with the stop token; no token is learned."""
    ids, other = ([*_encode_start(tokenizer, text), tokenizer.eos_token_id] for text in (left, right))
    return _example(ids, [False] * len(ids), prompt_length=0, pair=Pair(np.asarray(other, dtype=np.int32), label))


def leading_tokens(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many of the first tokens are those that the tokenizer puts before every text."""
    bare = tokenizer.encode("", add_special_tokens=True)
    same = (one == other for one, other in zip(ids, bare, strict=False))
    return sum(1 for _ in takewhile(bool, same))


def _example(ids: Sequence[int], learned: Sequence[bool], **rest: Any) -> Example:
    return Example(ids=np.asarray(ids, dtype=np.int32), learned=np.asarray(learned, dtype=np.bool_), **rest)


def _encode_start(tokenizer: Any, text: str) -> list[int]:
    """Tokens of the start of a sequence: with the leading special tokens that the tokenizer adds, without trailing ones."""
    ids = list(tokenizer.encode(text, add_special_tokens=True))
    plain = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) > len(plain) and ids and ids[-1] == tokenizer.eos_token_id and (not plain or plain[-1] != ids[-1]):
        ids.pop()
    return ids


@dataclass(frozen=True)
class Fitted:
    """Examples within maxLength, and what it took."""

    examples: list[Example]
    rows: list[Row]
    """What the examples are of."""
    dropped: int = 0
    truncated: int = 0


def fitted_of(rows: Sequence[Row], made: Sequence[Example | None]) -> Fitted:
    """What `fit_example` made of the rows."""
    kept = [(row, example) for row, example in zip(rows, made, strict=True) if example is not None]
    return Fitted(
        [example for _, example in kept],
        [row for row, _ in kept],
        dropped=len(rows) - len(kept),
        truncated=sum(example.truncated for _, example in kept),
    )


def fit_example(row: Row, example: Example, *, max_length: int, on_overflow: OnOverflow, source: str) -> Example | None:
    """A row as an example of at most `max_length` tokens: as it is, cut, or None where it is dropped.

    Fail raises DataError naming the row. Drop leaves it out. Truncate cuts a prompt at its start (BOS stays) and
    never the answer; a text at its end, where the stop token then is not taught, since the text does not end there. A row
    whose answer alone is too long cannot be cut: it is dropped.
    """
    if example.width <= max_length:
        return example
    if on_overflow is OnOverflow.FAIL:
        raise DataError(
            Reason.ROW_TOO_LONG,
            f"{row.of(source)} has {example.width} tokens, data.maxLength is {max_length}: raise"
            " data.maxLength, shorten the row, or set data.onOverflow to Truncate or Drop",
        )
    cut = _truncate(example, max_length) if on_overflow is OnOverflow.TRUNCATE else None
    return replace(cut, truncated=True) if cut is not None else None


def _truncate(example: Example, limit: int) -> Example | None:
    if example.pair is not None:
        shorter = replace(example.pair, right=example.pair.right[:limit])
        return replace(example, ids=example.ids[:limit], learned=example.learned[:limit], pair=shorter)
    if example.expected is None:
        return replace(example, ids=example.ids[:limit], learned=example.learned[:limit])
    answer = len(example.ids) - example.prompt_length
    kept = limit - answer  # tokens of the prompt
    if kept <= example.leading:
        return None
    left = np.r_[: example.leading, example.prompt_length - kept + example.leading : len(example.ids)]
    return replace(example, ids=example.ids[left], learned=example.learned[left], prompt_length=kept)
