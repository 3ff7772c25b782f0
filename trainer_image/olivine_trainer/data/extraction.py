"""The spans of a row as the text of an answer: from here on its text and spans fields are plain strings, as templates take them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from olivine_api.data import Extraction
from olivine_api.reasons import Reason
from olivine_trainer.data.rows import Row
from olivine_trainer.data.template import RowTemplate, as_text, require_fields
from olivine_trainer.errors import ConfigurationError, DataError
from olivine_trainer.spans import Span, fold, is_label, is_tag, write_spans

_FORMS = (
    'a list of {"label", "start", "end"} (or "text" in place of the offsets), or an object from label to text or {"text", "span"}'
)


def check_extraction(extraction: Extraction, template: RowTemplate) -> None:
    """Raise ConfigurationError where the template does not ask with the text, and answer with the spans alone."""
    prompt, completion = template.prompt, template.completion
    if prompt is None or extraction.text_field not in prompt.fields:
        raise _of_spec(f"data.template.prompt must name {{{extraction.text_field}}}: it is data.extraction.textField")
    if completion is None or set(completion.fields) != {extraction.spans_field}:
        raise _of_spec(
            f"data.template.completion must name {{{extraction.spans_field}}} (data.extraction.spansField) and no other field"
        )


def written_rows(rows: Sequence[Row], extraction: Extraction, source: str) -> list[Row]:
    """The rows, their spans written as answers. A row without the field has no spans, unless none has it.

    Raises DataError naming the row whose spans cannot be read.
    """
    require_fields(rows, (extraction.text_field,), "data.extraction.textField", source)
    if all(extraction.spans_field not in row.fields for row in rows):
        require_fields(rows, (extraction.spans_field,), "data.extraction.spansField", source)
    return [written_row(row, extraction, source) for row in rows]


def written_row(row: Row, extraction: Extraction, source: str) -> Row:
    """One of them; its text field must be there."""
    require_fields([row], (extraction.text_field,), "data.extraction.textField", source)
    write = _tags if extraction.format == "BIO" else _spans
    return replace(row, fields={**row.fields, **write(row, extraction, source)})


def _spans(row: Row, extraction: Extraction, source: str) -> dict[str, str]:
    text = as_text(row.fields[extraction.text_field])
    spans = [_placed(text, *one, row=row, source=source) for one in _given(_parsed(row, extraction, source), row, source)]
    spans.sort(key=lambda span: (span.start, -span.end))
    return {extraction.text_field: text, extraction.spans_field: write_spans(spans)}


def _tags(row: Row, extraction: Extraction, source: str) -> dict[str, str]:
    """Tokens and tags, each as a list or as one string with spaces."""
    tokens, tags = _words(row.fields[extraction.text_field]), _words(_parsed(row, extraction, source))
    if not tags and not row.fields.get(extraction.spans_field):
        tags = ["O"] * len(tokens)
    if len(tokens) != len(tags):
        raise _of_row(
            row, source, f"has {len(tokens)} tokens in {{{extraction.text_field}}} and {len(tags)} tags: write one a token"
        )
    wrong = next((tag for tag in tags if not is_tag(tag)), None)
    if wrong is not None:
        raise _of_row(row, source, f"has the tag {wrong!r}: write O, B-label or I-label")
    return {extraction.text_field: " ".join(tokens), extraction.spans_field: " ".join(tags)}


def _words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [fold(as_text(item)).replace(" ", "_") for item in value]
    return as_text(value).split()


def _parsed(row: Row, extraction: Extraction, source: str) -> Any:
    """The spans field; a string of JSON (CSV has no other way) is read."""
    value = row.fields.get(extraction.spans_field)
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise _of_row(row, source, f"has spans that are not valid JSON: {error.msg} at column {error.colno}") from None


def _given(value: Any, row: Row, source: str) -> Iterator[tuple[str, Any, Any]]:
    """(label, offsets or None, text or None) of each span, in any of the forms."""
    if value is None or value == "":
        return
    if isinstance(value, dict):
        items = [(label, one) for label, ones in value.items() for one in (ones if isinstance(ones, list) else [ones])]
        for label, one in items:
            yield (label, _offsets(one), one.get("text")) if isinstance(one, dict) else (label, None, one)
        return
    if not isinstance(value, list) or not all(isinstance(one, dict) and isinstance(one.get("label"), str) for one in value):
        raise _of_row(row, source, f"has spans in no known form: write {_FORMS}")
    for one in value:
        yield one["label"], _offsets(one), one.get("text")


def _offsets(one: dict[str, Any]) -> Any:
    return one["span"] if "span" in one else (one["start"], one["end"]) if "start" in one and "end" in one else None


def _placed(text: str, label: str, offsets: Any, said: Any, *, row: Row, source: str) -> Span:
    """The span, checked against the text. Raises DataError."""
    if not is_label(label):
        raise _of_row(row, source, f"has the label {label!r}: write one without ': ', line breaks or white space around it")
    if offsets is None:
        if not isinstance(said, str) or not said.strip() or said not in text:
            raise _of_row(row, source, f"has a span {label!r} whose text {said!r} does not occur in its text: write {_FORMS}")
        start = text.index(said)
        offsets = (start, start + len(said))
    try:
        start, end = (int(offset) for offset in offsets)
    except (TypeError, ValueError):
        raise _of_row(row, source, f"has a span {label!r} with the offsets {offsets!r}: write two numbers") from None
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        raise _of_row(
            row, source, f"has a span {label!r} from {start} to {end}, which are no characters of its text of {len(text)}"
        )
    if isinstance(said, str) and fold(said) != fold(text[start:end]):
        raise _of_row(
            row, source, f"has a span {label!r} with the text {said!r}, but its offsets hold {text[start:end]!r}: correct one"
        )
    return Span(start, end, label, fold(text[start:end]))


def _of_row(row: Row, source: str, what: str) -> DataError:
    return DataError(Reason.DATA_UNREADABLE, f"{row.of(source)} {what}")


def _of_spec(what: str) -> ConfigurationError:
    return ConfigurationError(Reason.INVALID_SPEC, what)
