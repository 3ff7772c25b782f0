"""Entity-level precision, recall and F1 by seqeval, over answers aligned with the tokens of their texts."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from olivine_trainer.spans import is_tag, read_spans

ENTITY_KEYS = ("entityF1", "entityPrecision", "entityRecall", "malformedAnswers")
_TOKEN = re.compile(r"\w+|[^\w\s]")

Tags = tuple[list[str], list[str]]
"""Expected and answered tags of a row, one a token."""


def entity_scores(
    extraction: Literal["Spans", "BIO"], sources: Sequence[str], expected: Sequence[str], answers: Sequence[str]
) -> dict[str, float]:
    """Micro averages over all entities (label and extent equal), and how many answers could not be read whole."""
    from seqeval.metrics import f1_score, precision_score, recall_score  # noqa: PLC0415  (only where it is asked for)

    read: Callable[[str, str, str], tuple[Tags, bool]] = _from_tags if extraction == "BIO" else _from_spans
    rows = [read(*row) for row in zip(sources, expected, answers, strict=True)]
    wanted, got = [tags[0] for tags, _ in rows], [tags[1] for tags, _ in rows]
    functions: Any = (f1_score, precision_score, recall_score)
    scores = [float(score(wanted, got, zero_division=0)) for score in functions]
    return dict(zip(ENTITY_KEYS, [*scores, float(sum(malformed for _, malformed in rows))], strict=True))


def _from_tags(_: str, expected: str, answer: str) -> tuple[Tags, bool]:
    """Too few tags are filled up with O, too many are cut."""
    wanted, got = expected.split(), answer.split()
    good = [tag if is_tag(tag) else "O" for tag in got][: len(wanted)]
    return (wanted, good + ["O"] * (len(wanted) - len(good))), len(got) != len(wanted) or not all(map(is_tag, got))


def _from_spans(source: str, expected: str, answer: str) -> tuple[Tags, bool]:
    """What cannot be placed (invented text, a span within a span) counts as an entity beside the text, so that it is held against both."""
    tokens = [match.span() for match in _TOKEN.finditer(source)]
    (asked, _), (told, malformed) = read_spans(expected), read_spans(answer)
    wanted, wanted_beside = _placed(source, tokens, asked)
    got, got_beside = _placed(source, tokens, told)
    for pair in sorted(wanted_beside | got_beside):  # a union of counters: the larger count of each
        for number in range(max(wanted_beside[pair], got_beside[pair])):
            wanted.append(f"B-{pair[0]}" if number < wanted_beside[pair] else "O")
            got.append(f"B-{pair[0]}" if number < got_beside[pair] else "O")
    return (wanted, got), malformed


def _placed(
    source: str, tokens: Sequence[tuple[int, int]], pairs: Sequence[tuple[str, str]]
) -> tuple[list[str], Counter[tuple[str, str]]]:
    """Tags of the tokens: each text at its first free place after the one before, else at its first free one at all."""
    tags = ["O"] * len(tokens)
    beside: Counter[tuple[str, str]] = Counter()
    cursor = 0
    for label, text in pairs:
        pattern = re.compile(r"\s+".join(re.escape(word) for word in text.split()))
        places = [match.span() for match in pattern.finditer(source)]
        places.sort(key=lambda place: (place[0] < cursor, place[0]))
        for start, end in places:
            covered = [index for index, token in enumerate(tokens) if token[0] < end and token[1] > start]
            if covered and all(tags[index] == "O" for index in covered):
                for index in covered:
                    tags[index] = f"{'B' if index == covered[0] else 'I'}-{label}"
                cursor = end
                break
        else:
            beside[label, text] += 1
    return tags, beside
