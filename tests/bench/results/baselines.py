"""What the tuned model is held against on Banking77: TF-IDF with logistic regression, and the base model asked without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivine_trainer.evaluation.texts import f1_scores, share_of_equal
from tests.bench.results.rows import Row, Splits, by_hash

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)  # C of the logistic regression; the validation rows choose
ASKED_PROMPT, ASKED_ANSWER = "Message: {text}\nTopic:", " {topic}"
_BATCH = 16


@dataclass(frozen=True)
class Scored:
    """Answers of one classifier over test rows."""

    rows: int
    accuracy: float
    macro_f1: float
    how: str = ""
    """What was chosen, in words."""


def tfidf(splits: Splits) -> Scored:
    """Fit on the rows that the job trains on; its C is the one that does best on the validation rows."""
    # Imported here, as below: each takes seconds, and the page needs neither.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import FeatureUnion

    features: Any = FeatureUnion(
        [
            ("words", TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
            ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2, sublinear_tf=True)),
        ]
    )
    trained = features.fit_transform(_texts(splits.train))
    held, measured = features.transform(_texts(splits.validation)), features.transform(_texts(splits.test))
    fitted: dict[float, Any] = {
        strength: LogisticRegression(C=strength, max_iter=1000).fit(trained, _labels(splits.train)) for strength in STRENGTHS
    }
    chosen = max(STRENGTHS, key=lambda strength: share_of_equal(_labels(splits.validation), list(fitted[strength].predict(held))))
    how = f"word 1-2-grams and character 2-5-grams, {trained.shape[1]:,} features, C {chosen:g} of {', '.join(f'{c:g}' for c in STRENGTHS)}"
    return _scored(splits.test, list(fitted[chosen].predict(measured)), how)


def asked_plainly(splits: Splits, model: Path, *, sample: int, threads: int) -> Scored:
    """The base model without training: of all topics in words, the one that it finds most probable behind the prompt."""
    import numpy as np
    import torch

    from olivine_trainer.evaluation.labels import make_scorer
    from olivine_trainer.modeling.example import Example
    from olivine_trainer.modeling.forward import can_split_head
    from olivine_trainer.modeling.loading import fitted_to, load_model, load_tokenizer
    from olivine_trainer.world.world import alone

    torch.set_num_threads(threads)
    uri = f"file://{model}"
    causal = load_model(model, uri, torch.float32)
    tokenizer = fitted_to(causal, load_tokenizer(model, uri))

    def encode(text: str) -> list[int]:
        return tokenizer.backend.encode(text, add_special_tokens=False)

    topics = {row["topic"]: row["category"] for row in splits.train}
    answers = [ASKED_ANSWER.format(topic=topic) for topic in sorted(topics)]
    rows = by_hash(splits.test)[:sample]
    prompts = [encode(ASKED_PROMPT.format(text=row["text"])) for row in rows]
    scorer = make_scorer(
        causal,
        answers,
        [[*encode(answer), tokenizer.eos_id] for answer in answers],
        split_head=can_split_head(causal),
        pad_id=tokenizer.pad_id,
        device=torch.device("cpu"),
        longest=max(map(len, prompts)),
    )
    examples = [Example(np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.bool_), len(ids)) for ids in prompts]
    told = scorer.answers(examples, batch_size=_BATCH, tick=lambda *_: None, world=alone())
    return _scored(rows, [topics[answer.strip()] for answer in told], f"the first {sample} test rows by the texts' hash")


def _scored(rows: Sequence[Row], answers: Sequence[str], how: str) -> Scored:
    wanted = _labels(rows)
    return Scored(len(rows), share_of_equal(wanted, answers), f1_scores(wanted, answers)[0], how)


def _texts(rows: Sequence[Row]) -> list[str]:
    return [row["text"] for row in rows]


def _labels(rows: Sequence[Row]) -> list[str]:
    return [row["category"] for row in rows]
