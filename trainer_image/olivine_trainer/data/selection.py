"""Which rows of which splits: `train[:4096]`, `train[10%:20%]`, `train[:100]+validation`, as Hugging Face's datasets reads them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from olivine_api.reasons import Reason
from olivine_trainer.errors import DataError

Item = TypeVar("Item")

_NAME = r"[A-Za-z0-9_.-]+"
_BOUND = r"-?\d+%?"
_PART = re.compile(rf"^(?P<name>{_NAME})(?:\[(?P<start>{_BOUND})?:(?P<stop>{_BOUND})?\])?$")
_EXAMPLES = "train, train[:4096], train[10%:20%], train[:100]+validation[-100:]"


@dataclass(frozen=True)
class Bound:
    """One end of a slice, counted in rows or in hundredths of the split; negative: from its end."""

    value: int
    percent: bool

    def of(self, rows: int) -> int:
        """The row that it is, of so many."""
        value = round(rows * self.value / 100) if self.percent else self.value
        return min(rows, max(0, rows + value) if value < 0 else value)


@dataclass(frozen=True)
class Part:
    """A slice of one split."""

    split: str
    start: Bound | None = None
    stop: Bound | None = None

    def take(self, rows: Sequence[Item]) -> Sequence[Item]:
        """Its rows, in their order."""
        start = self.start.of(len(rows)) if self.start is not None else 0
        stop = self.stop.of(len(rows)) if self.stop is not None else len(rows)
        return rows[start:stop]

    def __str__(self) -> str:
        if self.start is None and self.stop is None:
            return self.split
        start, stop = (f"{end.value}{'%' if end.percent else ''}" if end is not None else "" for end in (self.start, self.stop))
        return f"{self.split}[{start}:{stop}]"


@dataclass(frozen=True)
class Selection:
    """Parts one after the other."""

    parts: tuple[Part, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that are read, each once."""
        return tuple(dict.fromkeys(part.split for part in self.parts))

    def take(self, rows: Mapping[str, Sequence[Item]], field: str) -> list[Item]:
        """The selected rows of `rows` by split. Raises DataError for a part without any, which names how many there are."""
        taken: list[Item] = []
        for part in self.parts:
            found = part.take(rows[part.split])
            if not found:
                raise DataError(
                    Reason.DATA_EMPTY,
                    f"{field}.split is {str(self)!r}, but {part} has no rows: {part.split} has {len(rows[part.split])}",
                )
            taken += found
        return taken

    def __str__(self) -> str:
        return "+".join(str(part) for part in self.parts)


def parse_selection(text: str, field: str) -> Selection:
    """Raises DataError for what is no selection, or counts beyond 100 %."""
    parts: list[Part] = []
    for piece in text.split("+"):
        match = _PART.match(piece.strip())
        if match is None:
            raise DataError(Reason.INVALID_SPEC, f"{field}.split is {text!r}, which is no selection of rows: write {_EXAMPLES}")
        start, stop = (_bound(match[side], text, field) for side in ("start", "stop"))
        parts.append(Part(split=match["name"], start=start, stop=stop))
    return Selection(tuple(parts))


def _bound(written: str | None, text: str, field: str) -> Bound | None:
    if written is None:
        return None
    bound = Bound(value=int(written.removesuffix("%")), percent=written.endswith("%"))
    if bound.percent and abs(bound.value) > 100:
        raise DataError(Reason.INVALID_SPEC, f"{field}.split is {text!r}, but {written} is more than all: write at most 100%")
    return bound
