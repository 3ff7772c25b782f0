"""Training rows that are in memory, and put differently in every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from olivine_trainer.data.batches import batch_places
from olivine_trainer.data.maker import RowMaker
from olivine_trainer.data.rows import Row
from olivine_trainer.data.workers import Workers
from olivine_trainer.modeling.example import Example


@dataclass(frozen=True)
class AugmentedRows:
    """See TrainingRows."""

    rows: Sequence[Row]
    examples: Sequence[Example] = field(repr=False)
    """Of the rows as they are."""
    workers: Workers

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, seed: int, step: int, size: int) -> list[Example]:
        """See TrainingRows."""
        places = batch_places(seed, step, size, len(self.rows))
        made = self.workers.map(RowMaker.put, [(self.rows[index], seed, epoch, index) for epoch, index in places])
        return [self.examples[index] if one is None else one for one, (_, index) in zip(made, places, strict=True)]
