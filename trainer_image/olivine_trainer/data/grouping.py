"""Batches of rows of similar length: less padding, the same rows in the whole.

The order that training would have is cut into windows of 16 batches. Within a window rows are sorted by length and dealt into
batches anew, whose order is drawn: still a function of (seed, step), and every epoch still has each row once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from olivine_trainer.data.batches import TrainingRows
from olivine_trainer.modeling.example import Example

WINDOW = 16  # batches; more of them sort better, and leave less to chance in what comes together
_STREAM = 1 << 63  # apart from the keys of epochs


@dataclass(frozen=True)
class GroupedRows:
    """See TrainingRows; `total_steps` cuts the last window short, so that the run sees the rows that it would see."""

    rows: TrainingRows
    total_steps: int
    _window: dict[tuple[int, int, int], list[list[Example]]] = field(default_factory=dict, init=False, compare=False)
    """The newest one."""

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, seed: int, step: int, size: int) -> list[Example]:
        """See TrainingRows."""
        key = (seed, step // WINDOW, size)
        if key not in self._window:
            made = self._make(*key)
            self._window.clear()
            self._window[key] = made
        return self._window[key][step % WINDOW]

    def _make(self, seed: int, window: int, size: int) -> list[list[Example]]:
        steps = range(window * WINDOW, max(window * WINDOW + 1, min((window + 1) * WINDOW, self.total_steps)))
        rows = by_length([row for step in steps for row in self.rows.batch(seed, step, size)])
        keys = np.random.Philox(key=np.array([seed, _STREAM + window], dtype=np.uint64)).random_raw(len(steps))
        return [rows[place * size : (place + 1) * size] for place in np.argsort(keys, kind="stable")]


def by_length(rows: Sequence[Example]) -> list[Example]:
    """The longest first; equal ones as they came."""
    return sorted(rows, key=lambda row: -len(row.ids))
