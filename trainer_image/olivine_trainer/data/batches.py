"""Which rows a step trains on: a pure function of (seed, step), so that nothing of a loader needs saving.

Every epoch has a permutation of its own from a counter-based generator (Philox 4x64, Salmon et al. 2011), whose raw output
numpy guarantees across versions. The world size plays no part: the global batch is drawn whole, then divided among the ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from olivine_trainer.modeling.example import Example

Item = TypeVar("Item")


class TrainingRows(Protocol):
    """What training draws its batches from."""

    def __len__(self) -> int:
        """Rows of an epoch."""
        ...

    def batch(self, seed: int, step: int, size: int) -> list[Example]:
        """The global batch of `step` (from 0): a function of these alone, the same on every rank."""
        ...


@dataclass(frozen=True)
class TokenisedRows:
    """Rows that are examples already, the same in every epoch."""

    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, seed: int, step: int, size: int) -> list[Example]:
        """See TrainingRows."""
        return [self.examples[row] for row in batch_rows(seed, step, size, len(self.examples))]


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def epoch_order(seed: int, epoch: int, rows: int) -> npt.NDArray[np.int64]:
    """[rows]; the order of an epoch: row indices sorted by random 64-bit keys."""
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(rows)
    return np.argsort(keys, kind="stable")


def batch_rows(seed: int, step: int, batch: int, rows: int) -> list[int]:
    """Row indices of the global batch of `step` (from 0). Epochs follow one another without a gap; batches may straddle them."""
    return [row for _, row in batch_places(seed, step, batch, rows)]


def batch_places(seed: int, step: int, batch: int, rows: int) -> list[tuple[int, int]]:
    """The same as (epoch, row index)."""
    first = step * batch
    places = (divmod(position, rows) for position in range(first, first + batch))
    return [(epoch, int(epoch_order(seed, epoch, rows)[place])) for epoch, place in places]


def rank_micro_batches(batch: Sequence[Item], *, rank: int, world: int, micro: int) -> list[Sequence[Item]]:
    """This rank's part of a global batch, in micro-batches of at most `micro` rows: as many on each rank, the last maybe empty."""
    return [batch[start + rank * micro : start + (rank + 1) * micro] for start in range(0, len(batch), micro * world)]


def total_steps(max_steps: int | None, epochs: float | None, *, rows: int, batch: int) -> int:
    """Optimizer steps of the run: maxSteps, or as many as `epochs` passes need (rounded up)."""
    if max_steps is not None:
        return max_steps
    if epochs is None:
        raise ValueError("training needs maxSteps or epochs")
    return max(1, -int(-epochs * rows // batch))
