"""Classification by scores: one forward for all labels of a row gives what a row for each label gives, and answers are labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.support import TONES, make_job, run_job, tone_rows, write_rows

LABELS = (" joy", " anger", " angry", " fear", " fearful of heights")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(tiny_model)).eval()


def _scorer(model: Any, tokenizer: Any, texts: tuple[str, ...] = LABELS, longest: int = 64) -> Any:
    import torch

    from olivine_trainer.evaluation.labels import make_scorer

    ids = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
    return make_scorer(model, texts, ids, split_head=True, pad_id=1, device=torch.device("cpu"), longest=longest)


def _examples(tokenizer: Any, count: int = 7) -> list[Any]:
    from olivine_api.finetunejob import LossOn
    from olivine_trainer.data.tokens import completion_example

    rows = tone_rows(count)
    return [completion_example(tokenizer, f"Phrase: {row['phrase']}\nTone:", f" {row['tone']}", loss_on=LossOn.ALL) for row in rows]


def test_labels_share_the_tokens_they_begin_with() -> None:
    from olivine_trainer.evaluation.tree import LabelTree

    tree = LabelTree.of([(5, 6, 0), (5, 7, 0), (5, 6, 8, 0)])
    assert tree.tokens.tolist() == [5, 6, 7, 8]
    assert tree.depths.tolist() == [0, 1, 1, 2]
    assert tree.sees.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    assert tree.steps == (((-1, 5), (0, 6), (1, 0)), ((-1, 5), (0, 7), (2, 0)), ((-1, 5), (0, 6), (1, 8), (3, 0)))


@pytest.mark.parametrize("split_head", [True, False])
def test_one_forward_scores_as_a_row_for_each_label(model: Any, tokenizer: Any, split_head: bool) -> None:
    scorer = replace(_scorer(model, tokenizer), split_head=split_head)
    assert scorer.as_tree
    examples = _examples(tokenizer)
    tree = scorer.scores(examples, 4)
    rows = replace(scorer, as_tree=False).scores(examples, 4)
    # Rounding only: five labels behind seven prompts, log probabilities of some -20.
    assert (tree - rows).abs().max() < 1e-4
    assert tree.argmax(dim=1).tolist() == rows.argmax(dim=1).tolist()


def test_a_model_that_looks_back_less_far_is_not_given_a_tree(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "sliding_window", 32, raising=False)
    assert not _scorer(model, tokenizer, longest=64).as_tree
    assert _scorer(model, tokenizer, longest=32).as_tree


def test_a_model_that_takes_no_such_mask_is_given_rows(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = type(model.base_model).forward

    def causal_only(self: Any, **called: Any) -> Any:
        if called["attention_mask"].ndim == 4:
            called["attention_mask"] = None  # as an architecture does that looks at no mask
        return forward(self, **called)

    monkeypatch.setattr(model.base_model, "forward", causal_only.__get__(model.base_model))
    assert not _scorer(model, tokenizer).as_tree


def test_a_tie_goes_to_the_first_label() -> None:
    from olivine_trainer.evaluation.labels import first_best

    assert first_best([-3.0, -1.0, -1.0, -2.0]) == 1


def test_every_answer_is_a_label_and_free_generation_is_measured_beside_it(tiny_model: Path, tmp_path: Path) -> None:
    """A random model says no label when it is asked freely; scored, it always names one, right by chance at times."""
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    metrics = [{"name": "accuracy"}, {"name": "exact_match"}, {"name": "macro_f1"}]
    job = make_job(
        tiny_model, rows, f"file://{tmp_path}/runs", training__maxSteps=2, evaluation__metrics=metrics, evaluation__samples=6
    )
    published = run_job(job, tmp_path / "scratch")
    assert {sample.base for sample in published.samples} <= {f" {tone}" for tone in TONES}
    assert published.snapshot.baseline["exactMatch"] == 0
    assert 0 < published.snapshot.baseline["accuracy"] < 1
    assert set(published.snapshot.metrics) == {"trainLoss", "evalLoss", "accuracy", "exactMatch", "macroF1"}


def test_labels_by_name_are_scored_too(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", tone_rows(24))
    names = ["calm", *TONES]
    job = make_job(
        tiny_model, rows, f"file://{tmp_path}/runs", training__maxSteps=2, data__labels={"field": "tone", "names": names}
    )
    published = run_job(job, tmp_path / "scratch")
    assert {sample.tuned for sample in published.samples} <= {f" {name}" for name in names}
