"""From the two data sets as they are published to the rows of the jobs: what is trained on, held back, and measured."""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VALIDATION_SHARE = 0.05  # of each label's rows
TRAINED_FOLDS, TEST_FOLDS = range(17), range(17, 20)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Splits:
    """Rows that are trained on, that choose something (the baseline's C; none where nothing is chosen), and that are measured."""

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]

    def write(self, folder: Path) -> None:
        """As JSON lines: train.jsonl, validation.jsonl, test.jsonl."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def banking77(folder: Path) -> Splits:
    """Of train.csv and test.csv, columns text and category; `topic` is the category in words.

    Messages of the test rows are left out of the others, as the trainer would; the validation rows are drawn by the text's hash,
    so that they stay the same whatever the file's order.
    """
    test = _messages(folder / "test.csv")
    measured = {row["text"] for row in test}
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in _messages(folder / "train.csv"):
        if row["text"] not in measured:
            by_label[row["category"]].append(row)
    train: list[Row] = []
    validation: list[Row] = []
    for _, rows in sorted(by_label.items()):
        drawn = by_hash(rows)
        held = max(1, round(len(drawn) * VALIDATION_SHARE))
        validation += drawn[:held]
        train += drawn[held:]
    return Splits(by_hash(train), by_hash(validation), test)


def nlupp(folder: Path) -> Splits:
    """Of fold0.json to fold19.json: text, and slots, an object from label to {text, span} that the trainer reads as it is."""
    return Splits(_folds(folder, TRAINED_FOLDS), [], _folds(folder, TEST_FOLDS))


def by_hash(rows: Iterable[Row]) -> list[Row]:
    """In an order that only the texts decide."""
    return sorted(rows, key=lambda row: hashlib.sha256(str(row["text"]).encode()).digest())


def _messages(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [{"text": row["text"], "category": row["category"], "topic": row["category"].replace("_", " ")} for row in rows]


def _folds(folder: Path, numbers: Iterable[int]) -> list[Row]:
    found: list[Row] = []
    for number in numbers:
        found += json.loads((folder / f"fold{number}.json").read_text(encoding="utf-8"))
    return [{"text": row["text"], "slots": _spans(row.get("slots") or {})} for row in found]


def _spans(slots: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A slot's value is what a program makes of its text: the model is asked for the text only."""
    return [
        {"label": label, "start": slot["span"][0], "end": slot["span"][1], "text": slot["text"]} for label, slot in slots.items()
    ]
