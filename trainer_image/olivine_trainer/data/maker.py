"""Everything that turns a job's rows into examples; it may be pickled, so that other processes do the same (see workers)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from olivine_api.finetunejob import Data
from olivine_api.reasons import Reason
from olivine_trainer.data.augment import Augmenter
from olivine_trainer.data.labels import Labels
from olivine_trainer.data.making import MakeExample, example_maker
from olivine_trainer.data.rows import Row
from olivine_trainer.data.template import RowTemplate
from olivine_trainer.data.tokens import fit_example
from olivine_trainer.errors import DataError
from olivine_trainer.modeling.example import Example

TRAIN = "data.train"


@dataclass(frozen=True)
class RowMaker:
    """What an example is made of, beside its row."""

    data: Data
    template: RowTemplate
    augmenter: Augmenter | None
    labels: Labels | None
    tokenizer: Any
    stop_ids: frozenset[int]
    for_head: bool
    """For a classification head, see `for_a_head`."""
    _makers: dict[str, MakeExample] = field(default_factory=dict[str, MakeExample], init=False, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_makers": {}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)

    def fit(self, row: Row, source: str) -> Example | None:
        """A row of `source` as it is, cut to maxLength, or None where it is dropped. Raises DataError."""
        example = self.make(source)(row, None)
        return fit_example(row, example, max_length=self.data.max_length, on_overflow=self.data.on_overflow, source=source)

    def put(self, row: Row, seed: int, epoch: int, index: int) -> Example | None:
        """A training row in the words of this epoch; None where it stays as it is, also since they are longer than maxLength."""
        wording = self.augmenter.wording(row, seed=seed, epoch=epoch, index=index) if self.augmenter is not None else None
        made = self.make(TRAIN)(row, wording) if wording is not None else None
        return made if made is not None and len(made.ids) <= self.data.max_length else None

    def read(self, row: Row, seed: int, epoch: int, index: int) -> Example:
        """A training row that was read while training, in the words of this epoch. Raises DataError."""
        made = self.put(row, seed, epoch, index)
        if made is not None:
            return made
        example = self.kept(row)
        # Status counts rows that are cut: each once, when the first epoch meets it.
        return replace(example, truncated=False) if epoch and example.truncated else example

    def kept(self, row: Row) -> Example:
        """A training row as it is, or cut. Raises DataError where it cannot be cut: nothing is dropped while training."""
        example = self.fit(row, TRAIN)
        if example is None:
            raise DataError(
                Reason.ROW_TOO_LONG,
                f"{row.of(TRAIN)} has an answer that is longer than data.maxLength {self.data.max_length} and cannot be cut:"
                " raise data.maxLength, or shorten the row",
            )
        return example

    def make(self, source: str) -> MakeExample:
        """What makes examples of the rows of a source (data.train and such)."""
        if source not in self._makers:
            self._makers[source] = example_maker(
                self.data,
                self.template,
                self.tokenizer,
                stop_ids=self.stop_ids,
                labels=self.labels,
                source=source,
                for_head=self.for_head,
            )
        return self._makers[source]
