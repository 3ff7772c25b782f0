"""Metrics over answers, against the libraries whose definitions they take."""

import random
from pathlib import Path

import pytest
from sklearn.metrics import f1_score

from olivine_trainer.evaluation.keys import camel, key_of
from olivine_trainer.evaluation.texts import bleu, f1_scores, rouge, share_of_equal
from tests.unit.trainer.support import make_job, run_job, tone_rows, write_rows

LABELS = ("joy", "anger", "fear", "calm")


def test_equal_is_equal_but_for_white_space_around() -> None:
    assert share_of_equal([" joy", "fear", "calm"], ["joy\n", "Fear", "calm calm"]) == pytest.approx(1 / 3)


def test_f1_is_scikit_learns_over_the_expected_labels() -> None:
    """Also where some answers are no label at all, as free generation gives them."""
    draw = random.Random(5)
    for _ in range(50):
        expected = [draw.choice(LABELS[:3]) for _ in range(20)]
        answers = [draw.choice((*LABELS, "none of them")) for _ in range(20)]
        macro, micro = f1_scores(expected, answers)
        known = sorted(set(expected))
        assert macro == pytest.approx(f1_score(expected, answers, labels=known, average="macro"))
        assert micro == pytest.approx(f1_score(expected, answers, labels=known, average="micro"))


def test_bleu_is_that_of_the_corpus() -> None:
    text = "the cat sat on the mat and slept there"
    assert bleu([text, "a dog barked at the red moon"], [text, "a dog barked at the red moon"]) == pytest.approx(100)
    assert 0 < bleu([text], ["the cat sat on a mat and slept"]) < 100


def test_rouge_is_rouge_scores_for_english_and_not_blind_to_other_scripts() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    expected, answers = ["The cat sat on the mat.", "Rates rose by 2 %"], ["A cat sat on a mat", "Rates fell, by 2 points"]
    kinds = ("rouge1", "rouge2", "rougeL")
    theirs = [RougeScorer(kinds).score(want, answer) for want, answer in zip(expected, answers, strict=True)]
    assert rouge(expected, answers) == pytest.approx({kind: sum(one[kind].fmeasure for one in theirs) / 2 for kind in kinds})
    # Its own pattern keeps a to z alone: the same sentence would score 0.
    assert rouge(["кошка спит"], ["кошка спит"])["rougeL"] == 1


def test_keys_are_camel_case_and_name_their_rows() -> None:
    assert [camel(name) for name in ("exact_match", "macro_f1", "rougeL")] == ["exactMatch", "macroF1", "rougeL"]
    assert key_of("", "evalLoss") == "evalLoss"
    assert key_of("test", "evalLoss") == "testLoss"
    assert key_of("bank-cards", "accuracy") == "bankCardsAccuracy"


def test_a_summarization_is_measured_by_rouge_before_and_after(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(16))
    job = make_job(tiny_model, rows, f"file://{tmp_path}/runs", task="Summarization", training__maxSteps=2)
    snapshot = run_job(job, tmp_path / "scratch").snapshot
    assert set(snapshot.metrics) == {"trainLoss", "evalLoss", "rouge1", "rouge2", "rougeL"}
    assert set(snapshot.baseline) == set(snapshot.metrics) - {"trainLoss"}
