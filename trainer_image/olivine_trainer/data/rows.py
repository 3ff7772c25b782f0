"""Reading rows from .jsonl, .json, .csv and .parquet; every fault names the line."""

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivine_api.reasons import Reason
from olivine_trainer.data.selection import Selection
from olivine_trainer.errors import DataError
from olivine_trainer.faults import is_machine_fault

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
# \ud83d and such; most files have none, and their rows need no closer look.
_HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Row:
    """One row: its number in the file (from 1; the line for .jsonl) and its fields."""

    number: int
    fields: dict[str, Any]
    origin: str = ""
    """Where there are several files: which one it is of, and its number there."""

    def of(self, source: str) -> str:
        """How a sentence names the row; `source` is data.train and such."""
        return f"row {self.number} of {source}" + (f" ({self.origin})" if self.origin else "")


@dataclass(frozen=True)
class RowFiles:
    """Files of rows by split, and which of their rows are meant; without a selection all of them."""

    files: Mapping[str, tuple[Path, ...]]
    selection: Selection | None = None

    @classmethod
    def of(cls, path: Path) -> "RowFiles":
        """All rows of one file."""
        return cls(files={"train": (path,)})


def read_selected(source: RowFiles, field: str) -> list[Row]:
    """The rows that are meant, numbered through where a split has several files. Raises DataError: see `read_rows` and Selection."""
    rows = {split: _read_all(paths, field) for split, paths in source.files.items()}
    if source.selection is None:
        return [row for split in rows.values() for row in split]
    return source.selection.take(rows, field)


def _read_all(paths: tuple[Path, ...], field: str) -> list[Row]:
    if len(paths) == 1:
        return read_rows(paths[0], field)
    rows: list[Row] = []
    for path in paths:
        before = len(rows)
        rows += [
            Row(before + place, row.fields, origin=f"row {row.number} of {path.name}")
            for place, row in enumerate(read_rows(path, field), start=1)
        ]
    return rows


def read_rows(path: Path, field: str) -> list[Row]:
    """All rows of a file. `field` (data.train, data.validation) is what errors name.

    Raises DataError: unknown suffix, unreadable line (by number), a row that is no object or holds half a character, no rows.
    """
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(Reason.DATA_UNREADABLE, f"{field}.uri ends in {path.name!r}: rows are read from {', '.join(SUFFIXES)}")
    try:
        rows = list(reader(path, field))
    except UnicodeDecodeError as error:
        raise DataError(
            Reason.DATA_UNREADABLE, f"{field}: {path.name} is not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from None
    if not rows:
        raise DataError(Reason.DATA_EMPTY, f"{field}: {path.name} has no rows")
    return rows


def _json_lines(path: Path, field: str) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            yield Row(number, parse_line(line, f"{field}: line {number} of {path.name}"))


def parse_line(line: str, where: str) -> dict[str, Any]:
    """The object in a line of JSON. Raises DataError, which begins with `where`."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(Reason.DATA_UNREADABLE, f"{where} is not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise DataError(Reason.DATA_UNREADABLE, f"{where} is nested too deeply to be read") from None
    return _as_object(value, where, halves=_HALF_ESCAPED.search(line) is not None)


def _json(path: Path, field: str) -> Iterator[Row]:
    """An array of objects; else JSON lines."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        _require_no_single_object(text, path, field)
        yield from _json_lines(path, field)
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            Reason.DATA_UNREADABLE,
            f"{field}: {path.name} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}",
        ) from None
    except RecursionError:
        raise DataError(Reason.DATA_UNREADABLE, f"{field}: {path.name} is nested too deeply to be read") from None
    halves = _HALF_ESCAPED.search(text) is not None
    for number, value in enumerate(values, start=1):
        yield Row(number, _as_object(value, f"{field}: row {number} of {path.name}", halves=halves))


def _require_no_single_object(text: str, path: Path, field: str) -> None:
    """An object over several lines is neither form; its first line would be told as broken."""
    first, _, rest = text.strip().partition("\n")
    if not rest or first.rstrip().endswith("}"):
        return
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return  # told by line
    names = ", ".join(list(value)[:4]) if isinstance(value, dict) else type(value).__name__
    raise DataError(
        Reason.DATA_UNREADABLE,
        f"{field}: {path.name} is one object ({names}), not rows: write an array of objects, or one object a line",
    )


def _csv(path: Path, field: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a text may be longer than 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, restkey=None, restval=None)
        try:
            _require_different_names(reader.fieldnames or (), path, field)
            for number, fields in enumerate(reader, start=1):
                if None in fields or None in fields.values():
                    raise DataError(
                        Reason.DATA_UNREADABLE,
                        f"{field}: row {number} of {path.name} (line {reader.line_num}) has not as many values as the header has names",
                    )
                yield Row(number, dict(fields))
        except csv.Error as error:
            raise DataError(
                Reason.DATA_UNREADABLE, f"{field}: line {reader.line_num} of {path.name} is not valid CSV: {error}"
            ) from None


def _require_different_names(names: Sequence[str], path: Path, field: str) -> None:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise DataError(
            Reason.DATA_UNREADABLE, f"{field}: the header of {path.name} has the name {twice!r} twice: give each column its own"
        )


def _parquet(path: Path, field: str) -> Iterator[Row]:
    import pyarrow  # noqa: PLC0415  (a second of import, for this format alone)
    import pyarrow.parquet  # noqa: PLC0415

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        if is_machine_fault(error):
            raise
        raise DataError(
            Reason.DATA_UNREADABLE,
            f"{field}: {path.name} is not valid Parquet: {(str(error).splitlines() or [type(error).__name__])[0]}",
        ) from None
    for number, fields in enumerate(rows, start=1):
        yield Row(number, with_texts(fields))


def with_texts(fields: dict[str, Any]) -> dict[str, Any]:
    """Parquet's bytes as the text that they mostly are; those that are none stay."""
    found = {name: _text_of(value) for name, value in fields.items() if isinstance(value, bytes)}
    return fields | found if found else fields


def _text_of(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _as_object(value: Any, where: str, *, halves: bool) -> dict[str, Any]:
    """`halves`: half a character may be escaped in it."""
    if not isinstance(value, dict):
        raise DataError(Reason.DATA_UNREADABLE, f'{where} is not an object: each row must be like {{"field": "value", …}}')
    if halves:
        _require_whole_characters(value, where)
    return value


def _require_whole_characters(value: dict[str, Any], where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            Reason.DATA_UNREADABLE,
            f"{where} holds \\u{ord(error.object[error.start]):04x}, one half of a character that was cut in two (mostly an emoji):"
            " write the whole character, or remove the half",
        ) from None
