"""From the specification's data section to examples: read, check, split, render, tokenise, count."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from olivine_api.finetunejob import Data
from olivine_api.reasons import Reason
from olivine_api.status import ResolvedData
from olivine_trainer.data.chat import ChatRenderer
from olivine_trainer.data.rows import Row, RowFiles, read_selected
from olivine_trainer.data.split import Split, split_rows
from olivine_trainer.data.template import RowTemplate, as_text, require_fields
from olivine_trainer.data.tokens import Fitted, completion_example, fit_examples, pair_example, text_example
from olivine_trainer.errors import DataError
from olivine_trainer.modeling.example import Example


@dataclass(frozen=True)
class LoadedRows:
    """The rows, split, before any token."""

    split: Split
    template: RowTemplate
    digest: str
    """sha256 (hex) over the canonical JSON of the rows, training first."""
    repeated: int
    """Validation rows that are among the training rows too (only possible with a validation file of its own)."""


@dataclass(frozen=True)
class Prepared:
    """Everything that training and evaluation read."""

    train: list[Example]
    validation: list[Example]
    resolved: ResolvedData


def load_rows(data: Data, train_files: RowFiles, validation_files: RowFiles | None, *, seed: int) -> LoadedRows:
    """Read and split. Needs no tokenizer, so a missing column is found before the model is loaded.

    Raises DataError (see rows, template, split) and ConfigurationError for a template that cannot be read.
    """
    template = RowTemplate.of(data.template)
    train = read_selected(train_files, "data.train")
    _require(template, train, "data.train")
    repeated = 0
    if validation_files is not None:
        validation = read_selected(validation_files, "data.validation")
        _require(template, validation, "data.validation")
        known = {template.identity(row) for row in train}
        repeated = sum(template.identity(row) in known for row in validation)
        split = Split(train=train, validation=validation)
    elif data.validation_fraction is not None:
        split = _split(data, data.validation_fraction, train, template, seed)
    else:
        split = Split(train=train, validation=[])
    return LoadedRows(split=split, template=template, digest=_digest(split), repeated=repeated)


def prepare_examples(data: Data, loaded: LoadedRows, tokenizer: Any, *, stop_ids: frozenset[int]) -> Prepared:
    """Tokenise both sides. Raises DataError: a row too long with onOverflow Fail, or no row left to train or validate on."""

    def fitted(rows: Sequence[Row], source: str):  # noqa: ANN202
        make = _maker(data, loaded.template, tokenizer, stop_ids, source)
        return fit_examples(rows, make, max_length=data.max_length, on_overflow=data.on_overflow, source=source)

    train = fitted(loaded.split.train, "data.train")
    validation = fitted(loaded.split.validation, "data.validation" if data.validation is not None else "data.train")
    if not any(example.weight for example in train.examples):
        why = _why_none_is_left(train, len(loaded.split.train), data.max_length)
        raise DataError(Reason.DATA_EMPTY, f"no training row is left that teaches anything: {why}")
    if loaded.split.validation and not any(example.weight for example in validation.examples):
        why = _why_none_is_left(validation, len(loaded.split.validation), data.max_length)
        field = "data.validation" if data.validation is not None else "data.validationFraction"
        raise DataError(Reason.DATA_EMPTY, f"no validation row is left that measures anything: {why}, or leave {field} out")
    resolved = ResolvedData(
        rows=len(train.examples),
        validation_rows=len(validation.examples),
        digest=loaded.digest,
        dropped=train.dropped + validation.dropped,
        truncated=train.truncated + validation.truncated,
        tokens=sum(example.tokens for example in train.examples),
        learned_tokens=sum(example.learned_tokens for example in train.examples),
    )
    return Prepared(train=train.examples, validation=validation.examples, resolved=resolved)


def _why_none_is_left(fitted: Fitted, rows: int, max_length: int) -> str:
    if fitted.dropped:
        return f"{fitted.dropped} of {rows} rows were dropped as longer than data.maxLength {max_length}; raise it"
    return f"all {rows} rows are empty; give rows with text"


def _require(template: RowTemplate, rows: Sequence[Row], source: str) -> None:
    for where, fields in template.named_fields.items():
        require_fields(rows, fields, where, source)


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


def _maker(data: Data, template: RowTemplate, tokenizer: Any, stop_ids: frozenset[int], source: str) -> Callable[[Row], Example]:
    if template.messages is not None:
        return ChatRenderer(tokenizer, template.messages, stop_ids=stop_ids, loss_on=data.loss_on, source=source).example
    if template.pair is not None:
        pair = template.pair
        return lambda row: pair_example(
            tokenizer, pair.left.render(row.fields), pair.right.render(row.fields), pair.label_of(row, source)
        )
    if template.text is not None:
        text = template.text
        return lambda row: text_example(tokenizer, text.render(row.fields))
    prompt, completion = template.prompt, template.completion
    if prompt is None or completion is None:
        raise ValueError("a template has text, messages, pair, or prompt with completion")
    return lambda row: completion_example(tokenizer, prompt.render(row.fields), completion.render(row.fields), loss_on=data.loss_on)


def _digest(split: Split) -> str:
    digest = hashlib.sha256()
    for side, rows in (("train", split.train), ("validation", split.validation)):
        digest.update(f"{side}\n".encode())
        for row in rows:
            digest.update(json.dumps(row.fields, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()
