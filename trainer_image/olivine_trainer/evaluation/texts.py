"""Metrics over answers and what was expected: exact match, accuracy and F1 over labels, BLEU, ROUGE."""

import re
from collections.abc import Sequence

# As rouge-score's own, but with letters of every script: its pattern turns a Russian summary into nothing.
_WORD = re.compile(r"[^\W_]+")


def share_of_equal(expected: Sequence[str], answers: Sequence[str]) -> float:
    """Share of the answers that equal what was expected, surrounding white space aside."""
    equal = [want.strip() == answer.strip() for want, answer in zip(expected, answers, strict=True)]
    return sum(equal) / len(equal)


def f1_scores(expected: Sequence[str], answers: Sequence[str]) -> tuple[float, float]:
    """Macro and micro F1 over the labels that are expected at least once, as scikit-learn's f1_score has them.

    An answer that is none of these labels is a miss of the expected one, and nobody's false alarm.
    """
    wanted, got = [one.strip() for one in expected], [one.strip() for one in answers]
    labels = sorted(set(wanted))
    scores: list[float] = []
    hits = wrong = 0
    for label in labels:
        both = sum(want == label == answer for want, answer in zip(wanted, got, strict=True))
        apart = wanted.count(label) + got.count(label) - 2 * both
        scores.append(2 * both / (2 * both + apart))
        hits, wrong = hits + both, wrong + apart
    return sum(scores) / len(scores), 2 * hits / (2 * hits + wrong)


def bleu(expected: Sequence[str], answers: Sequence[str]) -> float:
    """BLEU of the whole corpus by sacrebleu with its defaults, 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415  (only where it is asked for)

    return float(BLEU().corpus_score(list(answers), [list(expected)]).score)


class _Words:
    """rouge-score's tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def rouge(expected: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L by rouge-score, without stemming, 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, tokenizer=_Words())
    scores = [scorer.score(want, answer) for want, answer in zip(expected, answers, strict=True)]
    return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in kinds}
