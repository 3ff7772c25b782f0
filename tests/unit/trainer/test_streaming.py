"""Streaming: rows are read where they lie while training; batches stay a function of (seed, step)."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from olivine_api.data import Data
from olivine_api.reasons import Reason
from olivine_trainer.data import blocks, stream
from olivine_trainer.data.blocks import Place, blocks_of
from olivine_trainer.data.prepare import Prepared, load_rows, prepare_examples
from olivine_trainer.data.rows import Row, RowFiles, read_rows
from olivine_trainer.data.stream import index_rows
from olivine_trainer.errors import DataError
from olivine_trainer.storage.ranges import LocalRange, RangeReader, RemoteRange
from olivine_trainer.storage.store import Store
from tests.unit.trainer.support import adapter_bytes, kill_in_step, make_job, run_job, tone_rows, write_rows

TEMPLATE = {"prompt": "Phrase: {phrase}\nTone:", "completion": " {tone}"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few lines, looked for in pieces that cut lines in two, and pools of a few blocks."""
    monkeypatch.setattr(blocks, "BLOCK", 100)
    monkeypatch.setattr(blocks, "_PIECE", 37)
    monkeypatch.setattr(stream, "POOL", 300)


def parquet(path: Path, rows: list[dict[str, Any]], group: int = 4) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def everything(path: Path) -> list[Row]:
    """All rows of a file, block by block."""
    return [
        loaded.row(index)
        for block in blocks_of(LocalRange(path), Place("data.train", path.name, alone=True))
        for loaded in [block.load()]
        for index in range(len(loaded))
    ]


def prepared(files: list[Any], tokenizer: Any, **changes: Any) -> Prepared:
    raw = {"train": {"uri": "file:///rows.jsonl"}, "template": TEMPLATE, "streaming": True}
    data = Data.model_validate(raw | changes)
    return prepare_examples(data, load_rows(data, files, None, seed=0), tokenizer, stop_ids=frozenset({1}))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}\n{"a": "é\\n"}\n',
        '\ufeff{"a": 1}\r\n\r\n  \n{"a": "no break at the end"}',
        "".join(f'{{"a": "{"x" * (13 * index % 250)}"}}\n' + "\n" * (index % 3) for index in range(60)),
        '{"a": "' + "longer than a block and a piece " * 20 + '"}\n{"a": 2}\n',
    ],
    ids=["two lines", "mark, CRLF, blank lines", "many lines", "a long line"],
)
def test_blocks_of_lines_have_the_files_rows(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, newline="")
    assert everything(path) == read_rows(path, "data.train")


def test_row_groups_have_the_files_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", tone_rows(11))
    assert len(list(blocks_of(LocalRange(path), Place("data.train", path.name, alone=True)))) == 3
    assert everything(path) == read_rows(path, "data.train")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_epoch_has_each_row_once_and_batches_are_a_function_of_the_step(tmp_path: Path, tokenizer: Any, form: str) -> None:
    path = tmp_path / f"rows.{form}"
    (write_rows if form == "jsonl" else parquet)(path, tone_rows(50))
    rows = prepared([LocalRange(path)], tokenizer).train
    assert len(rows) == 50
    orders = [[one.number for one in rows.batch(7, epoch, 50)] for epoch in range(2)]
    assert all(sorted(order) == list(range(1, 51)) for order in orders)
    assert orders[0] != orders[1]
    steps = [[one.number for one in rows.batch(7, step, 8)] for step in range(12)]  # the seventh straddles two epochs
    assert [number for batch in steps for number in batch] == (orders[0] + orders[1])[:96]
    again = prepared([LocalRange(path)], tokenizer).train
    assert [one.number for one in again.batch(7, 9, 8)] == steps[9]  # without having read what came before
    assert [one.number for one in again.batch(8, 9, 8)] != steps[9]


@pytest.mark.usefixtures("small")
def test_rows_of_several_blocks_are_mixed_and_few_are_in_memory(tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", tone_rows(300))
    loads: list[int] = []

    class Counted(LocalRange):
        def read(self, start: int, end: int) -> bytes:
            loads.append(end - start)
            return super().read(start, end)

    rows = prepared([Counted(path)], tokenizer).train
    loads.clear()
    first = [one.number for one in rows.batch(0, 0, 8)]
    assert max(first) - min(first) > 8  # not one block after the other
    # A batch reads one pool, or two: 300 bytes and what the last block has beyond it.
    assert sum(loads) < 1000 < path.stat().st_size
    loads.clear()
    for step in range(300 // 8 + 1):
        rows.batch(0, step, 8)
    assert sum(loads) < 1.1 * path.stat().st_size  # each block once an epoch


def test_the_order_of_the_first_pool_is_fixed_for_good(tmp_path: Path, tokenizer: Any) -> None:
    """A resume on a newer release must draw the same batches: this order must never change."""
    rows = prepared([LocalRange(write_rows(tmp_path / "rows.jsonl", tone_rows(8)))], tokenizer).train
    assert [one.number for one in rows.batch(0, 0, 8)] == FIRST_ORDER


FIRST_ORDER = [7, 8, 6, 2, 5, 4, 1, 3]


@pytest.mark.usefixtures("small")
def test_several_files_are_one_stream_and_rows_are_named_by_file(tmp_path: Path, tokenizer: Any) -> None:
    first = write_rows(tmp_path / "a.jsonl", tone_rows(9))
    second = parquet(tmp_path / "b.parquet", [{"phrase": f"other {index}", "tone": "joy"} for index in range(9)])
    rows = prepared([LocalRange(first), LocalRange(second)], tokenizer).train
    assert len({one.prompt for one in rows.batch(0, 0, 18)}) == 18
    write_rows(first, [*tone_rows(3), {"phrase": "x"}])
    with pytest.raises(
        DataError, match=r"data\.template\.completion names the field \{tone\}, which row 4 of data\.train \(a\.jsonl\) lacks"
    ):
        prepared([LocalRange(first), LocalRange(second)], tokenizer)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"phrase": 1, "tone": 2}\n\n{"phrase": }\n', r"data\.train: line 3 of a\.jsonl is not valid JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl is a JSON array"),
        ("a.json", '\n[{"phrase": 1}]', r"a\.json is a JSON array, which data\.streaming cannot read in pieces"),
        ("a.csv", "phrase,tone\n", r"a\.csv, but data\.streaming reads JSON lines and Parquet alone"),
        ("a.jsonl", "\n \n", r"data\.train: a\.jsonl has no rows"),
        ("a.parquet", "junk", r"a\.parquet is not valid Parquet"),
        ("a.jsonl", '{"phrase": "a"}\n', r"names the field \{tone\}, which the rows of data\.train do not have; they have: phrase"),
    ],
)
def test_what_cannot_be_streamed_is_told_by_file_and_line(tmp_path: Path, tokenizer: Any, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        prepared([LocalRange(tmp_path / name)], tokenizer)


def test_bytes_that_are_no_text_are_told_by_line(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"phrase": "a", "tone": "b"}\n{"phrase": "\xff", "tone": "b"}\n')
    with pytest.raises(DataError, match=r"line 2 of a\.jsonl is not UTF-8"):
        prepared([LocalRange(tmp_path / "a.jsonl")], tokenizer)


def test_empty_and_measured_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*tone_rows(6), {"phrase": " ", "tone": "joy"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    validation = write_rows(tmp_path / "validation.jsonl", tone_rows(2))
    raw = {
        "train": {"uri": "file:///rows.jsonl"},
        "validation": {"uri": "file:///v.jsonl"},
        "template": TEMPLATE,
        "streaming": True,
    }
    data = Data.model_validate(raw | {"clean": {"deduplicate": False}, "labels": {"field": "tone"}})
    loaded = load_rows(data, [LocalRange(path)], RowFiles.of(validation), seed=0)
    assert (loaded.train_rows, loaded.removed.empty, loaded.removed.leaked) == (4, 1, 2)
    assert loaded.labels is not None
    assert loaded.labels.names == ("anger", "fear", "joy")
    other = load_rows(data, [LocalRange(write_rows(path, rows[:-2]))], RowFiles.of(validation), seed=0)
    assert other.digest != loaded.digest


def test_rows_that_are_too_long_are_cut_or_named_when_they_are_read(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"phrase": "x", "tone": "joy"}, {"phrase": "ha " * 60, "tone": "joy"}]
    files = [LocalRange(write_rows(tmp_path / "rows.jsonl", rows))]
    cut = prepared(files, tokenizer, maxLength=32, onOverflow="Truncate").train.batch(0, 0, 2)
    assert {one.number: (one.truncated, len(one.ids) <= 32) for one in cut} == {1: (False, True), 2: (True, True)}
    with pytest.raises(DataError, match=r"row 2 of data\.train has \d+ tokens, data\.maxLength is 32"):
        prepared(files, tokenizer, maxLength=32)


def test_an_object_is_read_in_pieces_and_not_fetched(tmp_path: Path, s3: Any) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(40))
    store = Store(s3.access("s3://bucket/streamed"))
    store.put("rows.jsonl", rows)
    item = store.list_here().objects[0]
    file = RemoteRange(s3.access("s3://bucket/streamed", role="train"), "rows.jsonl", item.size, item.tag)
    assert file.read(5, 50) == rows.read_bytes()[5:50]
    copy = pickle.loads(pickle.dumps(file))  # as a pod's processes hand it on
    index = index_rows([copy], "data.train", lambda _: True, written=lambda row: row)
    assert index.rows == 40
    store.put("rows.jsonl", b'{"phrase": "another"}\n' * 200)
    with pytest.raises(DataError, match=r"data\.train\.uri .*rows\.jsonl was changed or removed while it was read") as caught:
        file.read(5, 50)
    assert caught.value.reason is Reason.SOURCE_CHANGED
    store.delete(["rows.jsonl"])
    with pytest.raises(DataError, match="was changed or removed"):
        file.read(0, 5)


def test_a_reader_of_ranges_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    reader = RangeReader(LocalRange(path))
    reader.seek(-10, 2)
    assert (reader.read(4), reader.tell(), reader.read(), reader.read(1)) == (bytes(range(90, 94)), 94, bytes(range(94, 100)), b"")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_streamed_run_from_an_object_store_resumes_to_the_same_bytes(
    tiny_model: Path, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """28 places over 21 rows: long rows are cut while training and counted once, in the killed run as in the other; the file is never fetched."""
    monkeypatch.setattr(blocks, "BLOCK", 400)
    monkeypatch.setattr(stream, "POOL", 800)
    some = [*tone_rows(20), {"phrase": "ha " * 300, "tone": "joy"}]
    path = tmp_path / f"rows.{form}"
    (write_rows if form == "jsonl" else parquet)(path, some)
    store = Store(s3.access(f"s3://bucket/{tmp_path.name}"))
    store.put(f"data/{path.name}", path)
    environ = {
        "AWS_ACCESS_KEY_ID": s3.key,
        "AWS_SECRET_ACCESS_KEY": s3.secret,
        "AWS_ENDPOINT_URL": s3.endpoint,
    }
    validation = write_rows(tmp_path / "validation.jsonl", [{"phrase": "well", "tone": "joy"}])
    changes: dict[str, Any] = {
        "data__train__uri": f"s3://bucket/{tmp_path.name}/data/{path.name}",
        "data__streaming": True,
        "data__onOverflow": "Truncate",
        "data__validationFraction": None,
        "data__stratifyBy": None,
        "data__validation__uri": f"file://{validation}",
        "data__labels": {"field": "tone"},
        "data__augmentation": [{"name": "word_dropout", "probability": 0.3}],
        "training__maxSteps": 7,
    }
    calm = run_job(make_job(tiny_model, path, f"file://{tmp_path}/calm", **changes), tmp_path / "calm-scratch", environ=environ)
    job = make_job(tiny_model, path, f"file://{tmp_path}/killed", **changes)
    kill_in_step(job, 6, tmp_path / "first", environ)
    resumed = run_job(job, tmp_path / "second", environ=environ)
    assert adapter_bytes(resumed) == adapter_bytes(calm)
    data = resumed.snapshot.resolved.data
    assert data is not None
    assert data == calm.snapshot.resolved.data
    assert (data.rows, data.tokens, data.truncated) == (21, None, 1)
    assert not [found for found in (tmp_path / "second").rglob("*") if found.name == path.name]


def test_lines_of_a_file_are_the_same_rows_as_without_streaming(tmp_path: Path, tokenizer: Any) -> None:
    path = write_rows(tmp_path / "rows.jsonl", tone_rows(10))
    data = Data.model_validate({"train": {"uri": "file:///rows.jsonl"}, "template": TEMPLATE})
    whole = prepare_examples(data, load_rows(data, RowFiles.of(path), None, seed=0), tokenizer, stop_ids=frozenset({1})).train
    streamed = prepared([LocalRange(path)], tokenizer).train
    ids = [{one.number: one.ids.tolist() for one in rows.batch(0, 0, 10)} for rows in (whole, streamed)]
    assert ids[0] == ids[1]
    assert json.loads(path.read_text().splitlines()[0])["phrase"] == "ha 0"
