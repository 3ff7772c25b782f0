"""Which rows are trained on: repeats, empty rows and rows that are measured on go, and are counted; labels are known ones."""

from pathlib import Path
from typing import Any

import pytest

from olivine_api.finetunejob import Data
from olivine_api.reasons import Reason
from olivine_trainer.data.prepare import LoadedRows, load_rows, prepare_examples
from olivine_trainer.data.rows import RowFiles
from olivine_trainer.errors import ConfigurationError, DataError
from tests.unit.trainer.support import make_job, run_job, tone_rows, write_rows

TEMPLATE = {"prompt": "Phrase: {phrase}\nTone:", "completion": " {tone}"}


def load(tmp_path: Path, train: list[dict[str, Any]], *, seed: int = 0, **changes: Any) -> LoadedRows:
    """Rows of the sides that `changes` names under `rows_validation` and `rows_test`."""
    files: dict[str, RowFiles | None] = {}
    raw: dict[str, Any] = {"train": {"uri": "file:///train.jsonl"}, "template": TEMPLATE}
    for side, rows in (("train", train), *((side, changes.pop(f"rows_{side}", None)) for side in ("validation", "test"))):
        files[side] = RowFiles.of(write_rows(tmp_path / f"{side}.jsonl", rows)) if rows is not None else None
        if rows is not None:
            raw[side] = {"uri": f"file:///{side}.jsonl"}
    made = files["train"]
    assert made is not None
    return load_rows(Data.model_validate(raw | changes), made, files["validation"], files["test"], seed=seed)


def numbers(loaded: LoadedRows) -> list[int]:
    return [row.number for row in loaded.split.train]


def row(phrase: str, tone: str = "joy", **more: Any) -> dict[str, Any]:
    return {"phrase": phrase, "tone": tone, **more}


def test_without_clean_repeats_and_empty_rows_stay(tmp_path: Path) -> None:
    loaded = load(tmp_path, [row("a"), row("a"), row("")])
    assert (numbers(loaded), loaded.removed.duplicates, loaded.removed.empty) == ([1, 2, 3], 0, 0)


def test_of_equal_rows_the_first_stays(tmp_path: Path) -> None:
    """Equal is what the model sees: an id is no difference, another tone is one."""
    rows = [row("a", id=1), row("b"), row("a", id=2), row("a", "fear"), row("b")]
    loaded = load(tmp_path, rows, clean={"deduplicate": True})
    assert numbers(loaded) == [1, 2, 4]
    assert loaded.removed.duplicates == 2


def test_rows_with_an_empty_side_go(tmp_path: Path) -> None:
    rows = [row("a"), row("  "), row("b", ""), {"phrase": None, "tone": "joy"}, row("0")]
    loaded = load(tmp_path, rows, clean={"deduplicate": False})
    assert numbers(loaded) == [1, 5]
    assert loaded.removed.empty == 3
    with pytest.raises(DataError, match=r"data\.clean\.dropEmpty leaves no training row: in all 2 rows of data\.train"):
        load(tmp_path, [row(""), row(" ")], clean={})


def test_empty_chats_go(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    loaded = load(tmp_path, [{"chat": chat}, {"chat": []}, {"chat": None}], template={"messages": "chat"}, clean={})
    assert numbers(loaded) == [1]


def test_cleaning_comes_before_the_split(tmp_path: Path) -> None:
    rows = tone_rows(12)
    loaded = load(tmp_path, rows + rows, clean={}, validationFraction=0.25)
    assert (len(loaded.split.train), len(loaded.split.validation), loaded.removed.duplicates) == (9, 3, 12)


@pytest.mark.parametrize("side", ["validation", "test"])
def test_rows_that_are_measured_on_are_not_trained_on(tmp_path: Path, side: str) -> None:
    changes: dict[str, Any] = {f"rows_{side}": [row("a"), row("z")]}
    loaded = load(tmp_path, [row("a"), row("b"), row("a"), row("c")], **changes)
    assert numbers(loaded) == [2, 4]
    assert loaded.removed.leaked == 2
    assert [len(loaded.split.validation), len(loaded.test)] == ([2, 0] if side == "validation" else [0, 2])


def test_what_is_held_back_is_not_in_the_test_either(tmp_path: Path) -> None:
    rows = tone_rows(16)
    loaded = load(tmp_path, rows, rows_test=rows[:8], validationFraction=0.25)
    held = [one.fields for one in loaded.split.validation]
    assert (loaded.removed.leaked, len(held)) == (8, 2)
    assert not [one for one in held if one in rows[:8]]


def test_nothing_but_measured_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all rows of data\.train are in data\.validation too") as caught:
        load(tmp_path, tone_rows(4), rows_validation=tone_rows(4))
    assert caught.value.reason is Reason.DATA_EMPTY


def test_the_digest_knows_the_test_rows(tmp_path: Path) -> None:
    digests = {load(tmp_path, tone_rows(4), rows_test=test).digest for test in (None, [row("z")], [row("y")], [row("z"), row("y")])}
    assert len(digests) == 4


def test_labels_are_those_of_the_training_rows_sorted(tmp_path: Path, tokenizer: Any) -> None:
    data = {"train": {"uri": "file:///t.jsonl"}, "template": TEMPLATE, "labels": {"field": "tone"}}
    loaded = load(tmp_path, tone_rows(6), labels={"field": "tone"})
    assert loaded.labels is not None
    assert loaded.labels.names == ("anger", "fear", "joy")
    assert loaded.labels.completions == (" anger", " fear", " joy")
    prepared = prepare_examples(Data.model_validate(data), loaded, tokenizer, stop_ids=frozenset({1}))
    examples = [one for one in prepared.train.batch(0, 0, 6) if one.number in (1, 2)]
    assert {one.number: one.label for one in examples} == {1: 2, 2: 0}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"labels": {"field": "tone", "names": ["joy", "fear"]}},
            r"row 2 of data\.train has the label 'anger' in the field \{tone\}, which data\.labels\.names does not have: known are joy, fear;"
            r" correct the row, or add the label there",
        ),
        (
            {"labels": {"field": "tone"}, "rows_validation": [row("x"), row("y", "awe")]},
            r"row 2 of data\.validation has the label 'awe' in the field \{tone\}, which no training row has: known are anger, fear, joy",
        ),
        (
            {"labels": {"field": "tone"}, "rows_test": [row("y", "awe")]},
            r"row 1 of data\.test has the label 'awe'",
        ),
        ({"labels": {"field": "mood"}}, r"data\.labels\.field names the field \{mood\}, which the rows of data\.train do not have"),
    ],
    ids=["not among the names", "new in validation", "new in the test", "no such field"],
)
def test_another_label_is_named_with_its_row(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(tmp_path, tone_rows(6), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": {"field": "tone", "names": ["joy", "fear", "anger", "joy"]}}, r"data\.labels\.names has 'joy' twice"),
        ({"labels": {"field": "phrase"}}, r"data\.template\.completion must name \{phrase\} and no other field"),
    ],
    ids=["twice", "another answer"],
)
def test_labels_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load(tmp_path, tone_rows(6), **changes)


def test_one_label_is_no_classification(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is one label only, 'joy'"):
        load(tmp_path, [row("a"), row("b")], labels={"field": "tone"})


def test_a_run_counts_what_it_left_out(tiny_model: Path, tmp_path: Path) -> None:
    rows = [*tone_rows(12), tone_rows(1)[0], row("")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    validation = write_rows(tmp_path / "validation.jsonl", [*tone_rows(2), row("another one")])
    job = make_job(
        tiny_model,
        path,
        f"file://{tmp_path}/runs",
        data__validationFraction=None,
        data__stratifyBy=None,
        data__validation__uri=f"file://{validation}",
        data__clean={},
        data__labels={"field": "tone"},
        training__maxSteps=1,
        training__warmupSteps=0,
    )
    resolved = run_job(job, tmp_path / "scratch").snapshot.resolved.data
    assert resolved is not None
    assert (resolved.rows, resolved.duplicates, resolved.empty, resolved.leaked) == (10, 1, 1, 2)
