"""Files of rows in blocks that are read one at a time: lines of about a mebibyte, or a row group of Parquet."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Protocol

from olivine_api.reasons import Reason
from olivine_trainer.data.rows import Row, parse_line, with_texts
from olivine_trainer.errors import DataError
from olivine_trainer.faults import first_line, is_machine_fault
from olivine_trainer.storage.ranges import RangeFile, RangeReader

BLOCK = 1 << 20  # bytes of lines, at least
_PIECE = 8 << 20  # bytes that are read at once while lines are looked for
_BOM = b"\xef\xbb\xbf"


class LoadedBlock(Protocol):
    """The rows of a block in memory, each made when it is asked for."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def row(self, index: int) -> Row:
        """Raises DataError naming file and line where it cannot be read."""
        ...


class Block(Protocol):
    """Where a block lies."""

    @property
    def bytes(self) -> int:
        """What it takes in memory, about."""
        ...

    def load(self) -> LoadedBlock:
        """Read it."""
        ...


@dataclass(frozen=True)
class Place:
    """How sentences about a block's rows begin."""

    field: str
    file: str
    alone: bool
    """The field has but this file."""

    def row(self, number: int, fields: dict[str, Any]) -> Row:
        """The row with this number in the file."""
        return Row(number, fields, origin="" if self.alone else self.file)


def blocks_of(file: RangeFile, place: Place) -> Iterator[Block]:
    """A file's blocks in turn, found by reading it once. Raises DataError for a format that cannot be read in pieces."""
    suffix = PurePath(file.name).suffix.lower()
    if suffix == ".parquet":
        return _row_groups(file, place)
    if suffix in (".jsonl", ".json"):
        return _lines(file, place)
    raise DataError(
        Reason.DATA_UNREADABLE,
        f"{place.field}.uri names {file.name}, but data.streaming reads JSON lines and Parquet alone: convert it, or leave data.streaming out",
    )


@dataclass(frozen=True)
class _LinesBlock:
    file: RangeFile
    start: int
    end: int
    first: int
    """Number of its first line."""
    place: Place

    @property
    def bytes(self) -> int:
        return self.end - self.start

    def load(self) -> LoadedBlock:
        lines = self.file.read(self.start, self.end).split(b"\n")
        return _Lines([(self.first + at, line) for at, line in enumerate(lines) if line.strip()], self.place)


@dataclass(frozen=True)
class _Lines:
    lines: list[tuple[int, bytes]]
    place: Place

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> Row:
        number, line = self.lines[index]
        where = f"{self.place.field}: line {number} of {self.place.file}"
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise DataError(Reason.DATA_UNREADABLE, f"{where} is not UTF-8: save the file as UTF-8") from None
        return self.place.row(number, parse_line(text, where))


def _lines(file: RangeFile, place: Place) -> Iterator[Block]:
    """Ends of blocks are ends of lines."""
    start, first = 0, 1
    seen = newlines = 0  # bytes read, and line breaks since the block's start
    for at in range(0, file.size, _PIECE):
        piece = file.read(at, min(file.size, at + _PIECE))
        if at == 0:
            _require_lines(piece, file, place)
            start = len(_BOM) if piece.startswith(_BOM) else 0
        cursor = 0
        while True:
            wanted = max(cursor, start + BLOCK - at)  # the block ends with the first line break from here on
            found = piece.find(b"\n", wanted) if wanted < len(piece) else -1
            if found < 0:
                newlines += piece.count(b"\n", cursor)
                break
            newlines += piece.count(b"\n", cursor, found + 1)
            yield _LinesBlock(file, start, at + found + 1, first, place)
            start, first, newlines, cursor = at + found + 1, first + newlines, 0, found + 1
        seen = at + len(piece)
    if seen > start:
        yield _LinesBlock(file, start, seen, first, place)


def _require_lines(beginning: bytes, file: RangeFile, place: Place) -> None:
    if beginning.removeprefix(_BOM).lstrip()[:1] == b"[":
        raise DataError(
            Reason.DATA_UNREADABLE,
            f"{place.field}: {file.name} is a JSON array, which data.streaming cannot read in pieces: write one object a line, or leave"
            " data.streaming out",
        )


@dataclass(frozen=True)
class _RowGroup:
    file: RangeFile
    index: int
    bytes: int
    first: int
    """Number of its first row."""
    place: Place

    def load(self) -> LoadedBlock:
        with _told(self.place):
            return _Table(_open(self.file).read_row_group(self.index), self.first, self.place)


@dataclass(frozen=True)
class _Table:
    table: Any
    first: int
    place: Place

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def row(self, index: int) -> Row:
        return self.place.row(self.first + index, with_texts(self.table.slice(index, 1).to_pylist()[0]))


def _row_groups(file: RangeFile, place: Place) -> Iterator[Block]:
    with _told(place):
        found = _open(file).metadata
        groups = [found.row_group(index) for index in range(found.num_row_groups)]
    first = 1
    for index, group in enumerate(groups):
        yield _RowGroup(file, index, group.total_byte_size, first, place)
        first += group.num_rows


def _open(file: RangeFile) -> Any:
    import pyarrow  # noqa: PLC0415  (a second of import, for this format alone)
    import pyarrow.parquet  # noqa: PLC0415

    return pyarrow.parquet.ParquetFile(pyarrow.PythonFile(RangeReader(file), mode="r"))


@contextmanager
def _told(place: Place) -> Generator[None]:
    """What Arrow raises is the data's fault, unless memory, a disk or the store is at fault."""
    import pyarrow  # noqa: PLC0415

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if is_machine_fault(error):
            raise
        raise DataError(Reason.DATA_UNREADABLE, f"{place.field}: {place.file} is not valid Parquet: {first_line(error)}") from None
