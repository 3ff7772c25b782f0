"""One evaluation: validation loss, the metrics asked for, and answers to a few prompts."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from olivine_trainer.evaluation.generate import answer_limit, greedy_answers
from olivine_trainer.evaluation.heads import HeadScorer
from olivine_trainer.evaluation.keys import EVAL_LOSS, PERPLEXITY, key_of
from olivine_trainer.evaluation.labels import LabelScorer
from olivine_trainer.evaluation.loss import Tick, mean_loss
from olivine_trainer.evaluation.measures import Case, Measure
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import SummedLoss
from olivine_trainer.modeling.loading import Tokenizer
from olivine_trainer.world.world import World, alone

_LARGEST_EXPONENT = 700.0  # exp of more overflows a double


@dataclass(frozen=True)
class Evaluated:
    """What one model scored."""

    metrics: dict[str, float]
    answers: list[str]
    """To the first `samples` validation rows that have a prompt."""


@dataclass(frozen=True)
class RowSet:
    """Rows that are measured apart from the validation rows: data.test, or a benchmark."""

    name: str
    """What its keys begin with: test gives testAccuracy."""
    examples: Sequence[Example]
    measures: Sequence[Measure]
    with_loss: bool = True

    @property
    def keys(self) -> dict[str, bool]:
        """What is measured of it, and whether lower is better."""
        found = {EVAL_LOSS: True} if self.with_loss else {}
        found |= {key: key in measure.lower for measure in self.measures for key in measure.keys}
        return {key_of(self.name, key): lower for key, lower in found.items()} if self.examples else {}


@dataclass(frozen=True)
class Evaluator:
    """Everything that an evaluation needs, the same for base and tuned model; `tick` is called after each batch."""

    loss: SummedLoss
    causal: Any
    tokenizer: Tokenizer
    examples: Sequence[Example]
    batch_rows: Callable[[], int]
    """Rows of a batch now: fewer once memory has run out."""
    metrics: Sequence[Measure]
    samples: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[None]]
    scorer: LabelScorer | HeadScorer | None = None
    """Chooses answers among labels; None where they are generated."""
    others: Sequence[RowSet] = ()
    """Measured with everything, not in between."""
    world: World = field(default_factory=alone)
    """The ranks that share the work; each gets all results."""

    @property
    def keys(self) -> dict[str, bool]:
        """Everything that is measured, and whether lower is better."""
        return {key: lower for rows in self._sets() for key, lower in rows.keys.items()}

    @property
    def validation_keys(self) -> list[str]:
        """What is measured of the validation rows: what may decide while training."""
        return list(self._of_validation.keys)

    def loss_only(self, tick: Tick) -> dict[str, float]:
        """evalLoss, and perplexity where it is asked for."""
        return self._loss(self.examples, self.metrics, tick)

    def validation_only(self, tick: Tick) -> dict[str, float]:
        """All metrics of the validation rows; no sample answers, and nothing of the other rows."""
        return self._measured(self._of_validation, tick, samples=0)[0]

    def everything(self, tick: Tick) -> Evaluated:
        """All metrics and the sample answers; the answers that metrics need serve as samples too."""
        sets = self._sets()
        passes = _Passes(tick, len(sets))
        found: dict[str, float] = {}
        samples: list[str] = []
        for rows in sets:
            validation = not rows.name
            metrics, answers = self._measured(rows, passes.next(), samples=self.samples if validation else 0)
            found |= {key_of(rows.name, key): value for key, value in metrics.items() if key_of(rows.name, key) in rows.keys}
            samples = answers[: self.samples] if validation else samples
        return Evaluated(metrics=found, answers=samples)

    @property
    def _of_validation(self) -> RowSet:
        return RowSet("", self.examples, self.metrics)

    def _sets(self) -> list[RowSet]:
        return [rows for rows in (self._of_validation, *self.others) if rows.examples]

    def sample_examples(self) -> list[Example]:
        """The rows that `Evaluated.answers` belong to."""
        return with_answers(self.examples)[: self.samples]

    def _measured(self, rows: RowSet, tick: Tick, *, samples: int) -> tuple[dict[str, float], list[str]]:
        """Everything about some rows, and the answers that were needed for it, at least `samples`."""
        examples, measures = rows.examples, rows.measures
        asked = with_answers(examples)
        chosen = [measure for measure in measures if measure.compare is not None and not self._is_free(measure)]
        free = [measure for measure in measures if measure.compare is not None and self._is_free(measure)]
        wanted = asked if chosen else asked[:samples]
        by_loss = rows.with_loss or any(measure.compare is None for measure in measures)
        head = self.scorer if isinstance(self.scorer, HeadScorer) else None
        at_once = head if by_loss and self.loss.likelihood and len(wanted) == len(examples) else None
        passes = _Passes(tick, (by_loss and at_once is None) + bool(wanted) + bool(free and asked))
        if at_once is not None:
            answers, metrics = self._answers_and_loss(at_once, wanted, measures, passes.next())
        else:
            metrics = self._loss(examples, measures, passes.next()) if by_loss else {}
            answers = self._answers(wanted, passes.next()) if wanted else []
        if wanted:
            metrics |= compared_by(chosen, wanted, answers)
        if free and asked:
            metrics |= compared_by(free, asked, self._generated(asked, passes.next()))
        return metrics, answers

    def _is_free(self, measure: Measure) -> bool:
        """Whether it judges generated text, while answers are chosen among labels."""
        return measure.of_text and self.scorer is not None

    def _answers(self, examples: Sequence[Example], tick: Tick) -> list[str]:
        if self.scorer is None:
            return self._generated(examples, tick)
        with self.autocast():
            return self.scorer.answers(examples, batch_size=self.batch_rows(), tick=tick, world=self.world)

    def _answers_and_loss(
        self, head: HeadScorer, examples: Sequence[Example], measures: Sequence[Measure], tick: Tick
    ) -> tuple[list[str], dict[str, float]]:
        """Of a head: both in one pass."""
        with self.autocast():
            answers, loss = head.answers_and_loss(examples, batch_size=self.batch_rows(), tick=tick, world=self.world)
        return answers, self._told(loss, measures)

    def _loss(self, examples: Sequence[Example], measures: Sequence[Measure], tick: Tick) -> dict[str, float]:
        with self.autocast():
            loss = mean_loss(
                self.loss,
                examples,
                batch_size=self.batch_rows(),
                pad_id=self.tokenizer.pad_id,
                device=self.device,
                tick=tick,
                world=self.world,
            )
        return self._told(loss, measures)

    def _told(self, loss: float, measures: Sequence[Measure]) -> dict[str, float]:
        """The loss by its key, and perplexity where it is asked for."""
        found = {EVAL_LOSS: loss}
        if self.loss.likelihood and any(PERPLEXITY in measure.keys for measure in measures):
            found[PERPLEXITY] = math.exp(min(loss, _LARGEST_EXPONENT))
        return found

    def _generated(self, examples: Sequence[Example], tick: Tick) -> list[str]:
        with self.autocast():
            return greedy_answers(
                self.causal,
                examples,
                self.tokenizer,
                batch_size=self.batch_rows(),
                limit=answer_limit(examples),
                device=self.device,
                tick=tick,
                world=self.world,
            )


class _Passes:
    """Several passes over rows as one progress."""

    def __init__(self, tick: Tick, count: int) -> None:
        self._tick = tick
        self._count = count
        self._done = -1

    def next(self) -> Tick:
        """The tick of the next pass."""
        self._done += 1
        before, count = self._done, self._count
        return lambda done, of: self._tick(before * of + done, count * of)


def with_answers(examples: Sequence[Example]) -> list[Example]:
    """Those with a prompt and an answer to it."""
    return [example for example in examples if example.expected is not None and example.prompt_length]


def compared_by(measures: Sequence[Measure], examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    """Everything that the measures make of the answers."""
    cases = [Case(example.expected or "", answer, example.source) for example, answer in zip(examples, answers, strict=True)]
    found: dict[str, float] = {}
    for measure in measures:
        if measure.compare is not None:
            found |= measure.compare(cases)
    return found
