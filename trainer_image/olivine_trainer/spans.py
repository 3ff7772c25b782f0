"""An extraction's answer as text: data writes it from a row's spans, evaluation reads it back.

Format Spans: one line for each span, `label: text`, in the order of the text; `none` where there is none.
Format BIO: one tag for each token, separated by spaces: O, B-label, I-label.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

NONE = "none"
_TAG = re.compile(r"O|[BI]-\S+")
_SEPARATOR = ": "


@dataclass(frozen=True)
class Span:
    """One entity in a text."""

    start: int
    end: int
    label: str
    text: str
    """As an answer has it: white space folded."""


def write_spans(spans: Sequence[Span]) -> str:
    """The answer of format Spans."""
    return "\n".join(f"{span.label}{_SEPARATOR}{span.text}" for span in spans) or NONE


def read_spans(answer: str) -> tuple[list[tuple[str, str]], bool]:
    """(label, text) of each line, and whether some line is none of them."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if [line.lower() for line in lines] == [NONE]:
        return [], False
    pairs = [tuple(part.strip() for part in line.split(_SEPARATOR, 1)) for line in lines]
    good = [(pair[0], fold(pair[1])) for pair in pairs if len(pair) == 2 and all(pair)]
    return good, len(good) < len(lines) or not lines


def is_label(label: str) -> bool:
    """Whether a label can be read back from an answer."""
    return bool(label) and label == fold(label) and _SEPARATOR not in label


def is_tag(tag: str) -> bool:
    """Whether it is O, B-label or I-label."""
    return _TAG.fullmatch(tag) is not None


def fold(text: str) -> str:
    """White space folded: an answer is written in lines."""
    return " ".join(text.split())
