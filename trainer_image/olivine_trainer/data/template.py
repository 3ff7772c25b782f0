"""From a row's fields to text: {field} is replaced, {{ and }} stand for braces."""

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import Any

from olivine_api.finetunejob import Template
from olivine_api.reasons import Reason
from olivine_trainer.data.rows import Row
from olivine_trainer.errors import ConfigurationError, DataError

_SHOWN_FIELDS = 12


@dataclass(frozen=True)
class TextTemplate:
    """A parsed template: literal pieces, each followed by a field or by nothing."""

    pieces: tuple[tuple[str, str | None], ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that it names, in order."""
        return tuple(field for _, field in self.pieces if field is not None)

    def render(self, fields: dict[str, Any]) -> str:
        """The text of a row; every field must be there (`require_fields`)."""
        return "".join(literal + (as_text(fields[field]) if field is not None else "") for literal, field in self.pieces)


def parse_template(text: str, where: str) -> TextTemplate:
    """Parse a template. `where` (data.template.prompt) is what errors name. Raises ConfigurationError on stray braces."""
    pieces: list[tuple[str, str | None]] = []
    try:
        for literal, field, spec, conversion in string.Formatter().parse(text):
            if field is not None and (not field or spec or conversion):
                raise ValueError(f"{{{field}}} is no plain field name")
            pieces.append((literal, field))
    except ValueError as error:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"{where} cannot be read: {error}; write {{field}} for a field of the rows, {{{{ and }}}} for braces",
        ) from None
    return TextTemplate(tuple(pieces))


def as_text(value: Any) -> str:
    """A value in a text: strings as they are, nothing for null, dates in ISO's way, numbers and structures as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, date | time | Decimal):  # of Parquet
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def require_fields(rows: Sequence[Row], fields: Sequence[str], where: str, source: str) -> None:
    """Raise DataError where a field is in none of the rows, or missing from one (named by its number)."""
    for field in fields:
        for row in rows:
            _require_text(row, field, where, source)
        lacking = next((row for row in rows if field not in row.fields), None)
        if lacking is None:
            continue
        if all(field not in row.fields for row in rows):
            known = list(dict.fromkeys(name for row in rows[:100] for name in row.fields))
            shown = ", ".join(known[:_SHOWN_FIELDS]) + (", …" if len(known) > _SHOWN_FIELDS else "")
            raise DataError(
                Reason.COLUMN_MISSING,
                f"{where} names the field {{{field}}}, which the rows of {source} do not have; they have: {shown}",
            )
        require_in_row(lacking, (field,), where, source)


def _require_text(row: Row, field: str, where: str, source: str) -> None:
    if isinstance(row.fields.get(field), bytes):
        raise DataError(
            Reason.DATA_UNREADABLE,
            f"{where} names the field {{{field}}}, which in {row.of(source)} holds bytes that are no text: name another field",
        )


def require_in_row(row: Row, fields: Sequence[str], where: str, source: str) -> None:
    """Raise DataError where one row lacks a field that others have."""
    for field in fields:
        _require_text(row, field, where, source)
        if field not in row.fields:
            raise DataError(
                Reason.COLUMN_MISSING,
                f"{where} names the field {{{field}}}, which {row.of(source)} lacks, though others have it",
            )


@dataclass(frozen=True)
class PairOfTexts:
    """Two texts, and the field with their label, a number."""

    left: TextTemplate
    right: TextTemplate
    label: str

    def label_of(self, row: Row, source: str) -> float:
        """Raises DataError where it is no number."""
        value = row.fields[self.label]
        try:
            return float(value)
        except (TypeError, ValueError):
            raise DataError(
                Reason.DATA_UNREADABLE,
                f"data.template.pair.label names the field {self.label}, which in {row.of(source)} is {value!r}:"
                " it must be a number, e.g. 0 or 1",
            ) from None


@dataclass(frozen=True)
class RowTemplate:
    """data.template, parsed: exactly one of `text`, `prompt` with `completion`, `messages` (a field's name), `pair`."""

    text: TextTemplate | None
    prompt: TextTemplate | None
    completion: TextTemplate | None
    messages: str | None
    tools: str | None = None
    pair: PairOfTexts | None = None

    @classmethod
    def of(cls, template: Template) -> "RowTemplate":
        """Parse the specification's template."""

        def parsed(text: str | None, name: str) -> TextTemplate | None:
            return None if text is None else parse_template(text, f"data.template.{name}")

        pair = template.pair
        return cls(
            text=parsed(template.text, "text"),
            prompt=parsed(template.prompt, "prompt"),
            completion=parsed(template.completion, "completion"),
            messages=template.messages,
            tools=template.tools,
            pair=PairOfTexts(
                left=parse_template(pair.left, "data.template.pair.left"),
                right=parse_template(pair.right, "data.template.pair.right"),
                label=pair.label,
            )
            if pair is not None
            else None,
        )

    @property
    def named_fields(self) -> dict[str, tuple[str, ...]]:
        """The fields by the place that names them."""
        named = {
            f"data.template.{name}": part.fields
            for name, part in (("text", self.text), ("prompt", self.prompt), ("completion", self.completion))
            if part is not None
        }
        if self.messages is not None:
            named["data.template.messages"] = (self.messages,)
        if self.tools is not None:
            named["data.template.tools"] = (self.tools,)
        if self.pair is not None:
            named |= {
                "data.template.pair.left": self.pair.left.fields,
                "data.template.pair.right": self.pair.right.fields,
                "data.template.pair.label": (self.pair.label,),
            }
        return named

    def is_empty(self, row: Row) -> bool:
        """Whether nothing is there to read or to learn: all fields of a side of the template are blank, or the chat is."""
        if self.messages is not None:
            return not row.fields[self.messages]
        parts = [self.text, self.prompt, self.completion, *((self.pair.left, self.pair.right) if self.pair is not None else ())]
        sides = [part.fields for part in parts if part is not None]
        return any(fields and not any(as_text(row.fields[field]).strip() for field in fields) for fields in sides)

    def identity(self, row: Row) -> str:
        """What the model sees of a row, as one canonical string: rows that are equal here must not straddle a split."""
        used = sorted({field for fields in self.named_fields.values() for field in fields})
        return json.dumps({field: row.fields.get(field) for field in used}, sort_keys=True, ensure_ascii=False, default=str)
