"""From the specification's data section to examples: read, check, clean, split, render, tokenise, count."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from olivine_api.finetunejob import Data
from olivine_api.reasons import Reason
from olivine_api.status import ResolvedData
from olivine_trainer.data.augment import Augmenter
from olivine_trainer.data.augmented import AugmentedRows
from olivine_trainer.data.batches import TokenisedRows, TrainingRows
from olivine_trainer.data.clean import Removed, clean_rows
from olivine_trainer.data.extraction import check_extraction, written_row, written_rows
from olivine_trainer.data.labels import Labels, find_labels
from olivine_trainer.data.maker import RowMaker
from olivine_trainer.data.rows import Row, RowFiles, read_selected
from olivine_trainer.data.split import Split, split_rows
from olivine_trainer.data.stream import StreamedRows, StreamIndex, index_training_rows
from olivine_trainer.data.template import RowTemplate, as_text, require_fields
from olivine_trainer.data.tokens import Fitted, fitted_of
from olivine_trainer.data.workers import Workers
from olivine_trainer.errors import DataError
from olivine_trainer.modeling.example import Example
from olivine_trainer.storage.ranges import RangeFile

_LOOKED_AT = 64  # rows of a stream, before training


@dataclass(frozen=True)
class LoadedRows:
    """The rows, split, before any token."""

    split: Split
    test: list[Row]
    template: RowTemplate
    augmenter: Augmenter | None
    labels: Labels | None
    benchmarks: dict[str, list[Row]]
    """By name."""
    digest: str
    """sha256 (hex) over the canonical JSON of the rows, training first."""
    removed: Removed
    stream: StreamIndex | None = None
    """Where the training rows lie, if they are read while training; `split.train` is empty then."""

    @property
    def train_rows(self) -> int:
        """How many rows there are to train on."""
        return self.stream.rows if self.stream is not None else len(self.split.train)


@dataclass(frozen=True)
class Prepared:
    """Everything that training and evaluation read."""

    train: TrainingRows
    validation: list[Example]
    resolved: ResolvedData
    some: list[Example]
    """Training rows to try things on before training; all of them, unless they are streamed."""
    longest: int
    """Tokens of the longest row, whatever it is for."""
    largest_token: int
    test: list[Example] = field(default_factory=list[Example])
    """What data.test has, to be measured once, at the end."""
    labels: Labels | None = None
    benchmarks: dict[str, list[Example]] = field(default_factory=dict[str, list[Example]])
    """By name; measured before and after."""


def load_rows(
    data: Data,
    train_files: RowFiles | Sequence[RangeFile],
    validation_files: RowFiles | None,
    test_files: RowFiles | None = None,
    benchmark_files: Mapping[str, RowFiles] = {},
    *,
    seed: int,
) -> LoadedRows:
    """Read, clean and split. Needs no tokenizer, so a missing column is found before the model is loaded.

    `train_files`: files to read in pieces where data.streaming is true.
    Raises DataError (see rows, template, clean, labels, split, stream) and ConfigurationError for a template that cannot be read.
    """
    template = RowTemplate.of(data.template)
    augmenter = Augmenter(template, data.augmentation) if data.augmentation else None
    if data.extraction is not None:
        check_extraction(data.extraction, template)
    validation = read_for(data, validation_files, template, "data.validation") if validation_files is not None else []
    test = read_for(data, test_files, template, "data.test") if test_files is not None else []
    benchmarks = {name: read_for(data, files, template, _benchmark(name)) for name, files in benchmark_files.items()}
    of_benchmarks = {_benchmark(name): rows for name, rows in benchmarks.items()}
    others = {"test": test, **of_benchmarks}
    measured = [("data.validation", validation), ("data.test", test), *of_benchmarks.items()]
    measured = [(name, rows) for name, rows in measured if rows]
    if not isinstance(train_files, RowFiles):
        stream, labels, removed = index_training_rows(data, template, augmenter, train_files, measured, written=_written(data))
        split = Split(train=[], validation=validation)
        _require_labels(labels, measured)
        return LoadedRows(
            split, test, template, augmenter, labels, benchmarks, _digest(split, others, stream.digest), removed, stream
        )
    train = read_for(data, train_files, template, "data.train")
    if augmenter is not None:
        _require(augmenter.named_fields, train, "data.train")
    train, removed = clean_rows(train, data.clean, template, measured)
    if data.labels is not None:
        require_fields(train, (data.labels.field,), "data.labels.field", "data.train")
    labels = find_labels(data, template, (as_text(row.fields[data.labels.field]) for row in train) if data.labels else ())
    _require_labels(labels, [("data.train", train), *measured])
    split = Split(train=train, validation=validation)
    if data.validation_fraction is not None:
        split = _split(data, data.validation_fraction, train, template, seed)
    return LoadedRows(split, test, template, augmenter, labels, benchmarks, _digest(split, others), removed)


def prepare_examples(
    data: Data,
    loaded: LoadedRows,
    tokenizer: Any,
    *,
    stop_ids: frozenset[int],
    for_head: bool = False,
    workers: Workers | None = None,
) -> Prepared:
    """Tokenise all sides, by `workers`. Raises DataError: a row too long with onOverflow Fail, or no row left to train on or to measure."""
    workers = workers or Workers()
    workers.begin(RowMaker(data, loaded.template, loaded.augmenter, loaded.labels, tokenizer, stop_ids, for_head))

    def fitted(rows: Sequence[Row], source: str) -> Fitted:
        return fitted_of(rows, workers.map(RowMaker.fit, [(row, source) for row in rows]))

    train = fitted(loaded.split.train, "data.train")
    streamed = StreamedRows(loaded.stream, workers, written=_written(data)) if loaded.stream is not None else None
    looked_at = train.examples if streamed is None else streamed.some(_LOOKED_AT)
    validation = fitted(loaded.split.validation, "data.validation" if data.validation is not None else "data.train")
    test = fitted(loaded.test, "data.test")
    if not any(example.weight for example in looked_at):
        why = _why_none_is_left(train, loaded.train_rows, data.max_length)
        raise DataError(Reason.DATA_EMPTY, f"no training row is left that teaches anything: {why}")
    held = "data.validation" if data.validation is not None else "data.validationFraction"
    for kind, one, rows, name in (
        ("validation", validation, loaded.split.validation, held),
        ("test", test, loaded.test, "data.test"),
    ):
        if rows and not any(example.weight for example in one.examples):
            why = _why_none_is_left(one, len(rows), data.max_length)
            raise DataError(Reason.DATA_EMPTY, f"no {kind} row is left that measures anything: {why}, or leave {name} out")
    benchmarks = {name: fitted(rows, _benchmark(name)) for name, rows in loaded.benchmarks.items()}
    sides = (train, validation, test, *benchmarks.values())
    resolved = ResolvedData(
        rows=len(train.examples) if streamed is None else len(streamed),
        validation_rows=len(validation.examples),
        test_rows=len(test.examples),
        digest=loaded.digest,
        dropped=sum(side.dropped for side in sides),
        truncated=sum(side.truncated for side in sides),
        duplicates=loaded.removed.duplicates,
        empty=loaded.removed.empty,
        leaked=loaded.removed.leaked,
        tokens=sum(example.tokens for example in train.examples) if streamed is None else None,
        learned_tokens=sum(example.learned_tokens for example in train.examples) if streamed is None else None,
    )
    everything = [*looked_at, *(example for side in sides[1:] for example in side.examples)]
    return Prepared(
        train=streamed or _training_rows(loaded, train, workers),
        validation=validation.examples,
        test=test.examples,
        resolved=resolved,
        some=looked_at,
        longest=data.max_length if streamed is not None else max(example.width for example in everything),
        largest_token=max(int(ids.max()) for example in everything for ids in example.texts),
        labels=loaded.labels,
        benchmarks={name: one.examples for name, one in benchmarks.items()},
    )


def _training_rows(loaded: LoadedRows, train: Fitted, workers: Workers) -> TrainingRows:
    if loaded.augmenter is None:
        return TokenisedRows(train.examples)
    return AugmentedRows(train.rows, train.examples, workers)


def _written(data: Data) -> Callable[[Row], Row]:
    """A row as the template takes it, for rows that are read one by one."""
    extraction = data.extraction
    return (lambda row: row) if extraction is None else (lambda row: written_row(row, extraction, "data.train"))


def _require_labels(labels: Labels | None, sides: Sequence[tuple[str, Sequence[Row]]]) -> None:
    if labels is None:
        return
    for name, rows in sides:
        require_fields(rows, (labels.field,), "data.labels.field", name)
        for row in rows:
            labels.index(row, name)  # raises


def read_for(data: Data, files: RowFiles, template: RowTemplate, source: str) -> list[Row]:
    """All rows of a source, as the template takes them. Raises DataError: see rows, template, extraction."""
    rows = read_selected(files, source)
    if data.extraction is not None:
        rows = written_rows(rows, data.extraction, source)
    _require(template.named_fields, rows, source)
    return rows


def _require(named: Mapping[str, Sequence[str]], rows: Sequence[Row], source: str) -> None:
    for where, fields in named.items():
        require_fields(rows, fields, where, source)


def _why_none_is_left(fitted: Fitted, rows: int, max_length: int) -> str:
    if fitted.dropped:
        return f"{fitted.dropped} of {rows} rows were dropped as longer than data.maxLength {max_length}; raise it"
    return f"all {rows} rows are empty; give rows with text"


def _split(data: Data, fraction: float, rows: list[Row], template: RowTemplate, seed: int) -> Split:
    by = data.stratify_by
    if by is not None:
        require_fields(rows, (by,), "data.stratifyBy", "data.train")
    split = split_rows(
        rows, fraction, seed, identity=template.identity, stratum=lambda row: as_text(row.fields[by]) if by is not None else ""
    )
    if not split.validation:
        raise DataError(
            Reason.DATA_EMPTY,
            f"data.validationFraction {fraction:g} of {len(rows)} rows holds none back (equal rows stay together):"
            " give more rows, or leave data.validationFraction out",
        )
    return split


def _benchmark(name: str) -> str:
    return f"evaluation.benchmarks {name}"


def _digest(split: Split, others: Mapping[str, Sequence[Row]], streamed: str | None = None) -> str:
    digest = hashlib.sha256()
    if streamed is not None:
        digest.update(f"streamed {streamed}\n".encode())
    sides = (("train", split.train), ("validation", split.validation), *((name, rows) for name, rows in others.items() if rows))
    for side, rows in sides:
        digest.update(f"{side}\n".encode())
        for row in rows:
            digest.update(json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()
