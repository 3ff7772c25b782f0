"""One row as the model sees it: what data prepares, and training and evaluation read."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Pair:
    """What makes an example a pair: the other text, and the label of both."""

    right: npt.NDArray[np.int32]
    """[tokens]"""
    label: float


@dataclass(frozen=True)
class Example:
    """One row as the model sees it."""

    ids: npt.NDArray[np.int32]
    """[tokens]"""
    learned: npt.NDArray[np.bool_]
    """[tokens]; whether the token counts in the loss (the first never does: nothing predicts it)."""
    prompt_length: int
    """Tokens before the answer that evaluation asks for; 0 where there is none (text)."""
    leading: int = 0
    """Special tokens that the model expects at the start of every sequence (BOS); they stay where a prompt is cut at its start."""
    prompt: str = ""
    """The prompt as text, for samples."""
    expected: str | None = None
    """The answer as text; None where there is none (text)."""
    source: str = ""
    """The text that entities are extracted from (data.extraction)."""
    number: int = 0
    """The row's number in its source, for sentences about it; 0 where it is of none."""
    truncated: bool = False
    """Whether it was cut to data.maxLength."""
    label: int | None = None
    """Which of the labels it has (Prepared.labels), where data.labels names a field."""
    pair: Pair | None = None
    """`ids` are the left text then, and no token is learned."""

    @property
    def learned_tokens(self) -> int:
        """Tokens that count in the loss."""
        return int(self.learned[1:].sum())

    @property
    def texts(self) -> tuple[npt.NDArray[np.int32], ...]:
        """Its token sequences: one, or a pair's two."""
        return (self.ids,) if self.pair is None else (self.ids, self.pair.right)

    @property
    def width(self) -> int:
        """Tokens of the longest of them."""
        return max(len(ids) for ids in self.texts)

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        return sum(len(ids) for ids in self.texts)

    @property
    def weight(self) -> int:
        """What it adds to the number that the summed loss is divided by: its learned tokens; a pair counts once."""
        return 1 if self.pair is not None else self.learned_tokens

    @property
    def prompt_ids(self) -> npt.NDArray[np.int32]:
        """[prompt_length]"""
        return self.ids[: self.prompt_length]
