"""Corner cases of the formats of rows: what is read as it was meant, and what is told."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from olivine_trainer.data.rows import Row, read_rows
from olivine_trainer.data.template import as_text, require_fields
from olivine_trainer.errors import DataError


def read(tmp_path: Path, name: str, content: str | bytes) -> list[dict[str, Any]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row.fields for row in read_rows(path, "data.train")]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", '\ufeffa,b\r\n"x\r\ny, ""z""",2\r\n\r\n3,\r\n', [{"a": 'x\r\ny, "z"', "b": "2"}, {"a": "3", "b": ""}]),
        ("a.csv", "a,b\n" + "x" * 200_000 + ",1\n", [{"a": "x" * 200_000, "b": "1"}]),
        ("a.json", '\ufeff \n[{"a": 1}]\n', [{"a": 1}]),
        ("a.json", '{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ("a.jsonl", '{"a": "x\u2028y\u0085z"}\r\n{"a": null}', [{"a": "x\u2028y\u0085z"}, {"a": None}]),
    ],
    ids=["quotes, CRLF, mark", "a long text", "array with a mark", "lines without the last break", "separators within a line"],
)
def test_what_is_meant_is_read(tmp_path: Path, name: str, content: str, rows: list[dict[str, Any]]) -> None:
    assert read(tmp_path, name, content) == rows


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "text,label,text\n1,2,3\n", r"the header of a\.csv has the name 'text' twice"),
        ("a.csv", "", r"a\.csv has no rows"),
        ("a.csv", "a,b\n", r"a\.csv has no rows"),
        ("a.csv", 'a,b\n"x,2\n', r"a\.csv is not valid CSV: unexpected end of data"),
        ("a.csv", b"a,b\n\xff,2\n", r"a\.csv is not UTF-8 \(byte 4\)"),
        ("a.json", "[]", r"a\.json has no rows"),
        ("a.json", '[{"a": 1}, 2]', r"row 2 of a\.json is not an object"),
        ("a.json", '[{"a": 1}] x', r"a\.json is not valid JSON: Extra data at line 1, column 12"),
        ("a.json", '{\n "data": [{"a": 1}],\n "version": 2\n}', r"a\.json is one object \(data, version\), not rows"),
        ("a.json", '[{"a": ' + "[" * 100_000 + "]" * 100_000 + "}]", r"a\.json is nested too deeply"),
        ("a.jsonl", '{"a": 1}\n{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", r"line 2 of a\.jsonl is nested too deeply"),
        ("a.jsonl", '{"a": 1}{"a": 2}\n', r"line 1 of a\.jsonl is not valid JSON: Extra data at column 9"),
        ("a.jsonl", "\ufeff\n", r"a\.jsonl has no rows"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    with pytest.raises(DataError, match=r"data\.train: .*" + says):
        read(tmp_path, name, content)


def test_parquets_values_are_written_as_people_do(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            "day": [datetime.date(2026, 1, 2)],
            "price": [Decimal("1.50")],
            "binary": ["é".encode()],
            "kind": pyarrow.array(["x"]).dictionary_encode(),
            "chat": [[{"role": "user", "content": "hi"}]],
            "none": pyarrow.array([None], type=pyarrow.string()),
            "image": [b"\xff\xd8"],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (row,) = read_rows(tmp_path / "a.parquet", "data.train")
    texts = {name: as_text(row.fields[name]) for name in ("day", "price", "binary", "kind", "none")}
    assert texts == {"day": "2026-01-02", "price": "1.50", "binary": "é", "kind": "x", "none": ""}
    assert row.fields["chat"] == [{"role": "user", "content": "hi"}]
    with pytest.raises(DataError, match=r"names the field \{image\}, which in row 1 of data\.train holds bytes that are no text"):
        require_fields([row], ("image",), "data.template.prompt", "data.train")


def test_a_parquet_file_without_rows_is_told(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], type=pyarrow.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has no rows"):
        read_rows(tmp_path / "a.parquet", "data.train")


def test_rows_of_several_files_are_named_by_file() -> None:
    rows = [Row(1, {"a": 1}, origin="row 1 of x.jsonl"), Row(2, {}, origin="row 1 of y.jsonl")]
    with pytest.raises(DataError, match=r"which row 2 of data\.train \(row 1 of y\.jsonl\) lacks"):
        require_fields(rows, ("a",), "data.template.text", "data.train")


def test_numbers_and_structures_are_json() -> None:
    for value in (1, 1.5, True, ["é"], {"a": None}):
        assert as_text(value) == json.dumps(value, ensure_ascii=False)
