"""One evaluation: validation loss, perplexity, accuracy, and answers to a few prompts."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from olivine_api.finetunejob import FineTuneJobSpec, MetricName, Task
from olivine_trainer.evaluation.generate import answer_limit, greedy_answers
from olivine_trainer.evaluation.loss import Tick, mean_loss
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import SummedLoss
from olivine_trainer.modeling.loading import Tokenizer
from olivine_trainer.world.world import World, alone

EVAL_LOSS = "evalLoss"
PERPLEXITY = "perplexity"
ACCURACY = "accuracy"
_LARGEST_EXPONENT = 700.0  # exp of more overflows a double


@dataclass(frozen=True)
class Evaluated:
    """What one model scored."""

    metrics: dict[str, float]
    answers: list[str]
    """To the first `samples` validation rows that have a prompt."""


@dataclass(frozen=True)
class Evaluator:
    """Everything that an evaluation needs, the same for base and tuned model; `tick` is called after each batch."""

    loss: SummedLoss
    causal: Any
    tokenizer: Tokenizer
    examples: Sequence[Example]
    batch_rows: Callable[[], int]
    """Rows of a batch now: fewer once memory has run out."""
    metrics: frozenset[MetricName]
    samples: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[None]]
    world: World = field(default_factory=alone)
    """The ranks that share the work; each gets all results."""

    def loss_only(self, tick: Tick) -> dict[str, float]:
        """evalLoss, and perplexity where it is asked for."""
        with self.autocast():
            loss = mean_loss(
                self.loss,
                self.examples,
                batch_size=self.batch_rows(),
                pad_id=self.tokenizer.pad_id,
                device=self.device,
                tick=tick,
                world=self.world,
            )
        found = {EVAL_LOSS: loss}
        if MetricName.PERPLEXITY in self.metrics and self.loss.likelihood:
            found[PERPLEXITY] = math.exp(min(loss, _LARGEST_EXPONENT))
        return found

    def everything(self, tick: Tick) -> Evaluated:
        """All metrics and the sample answers; the answers that accuracy needs serve as samples too."""
        if not self.examples:
            return Evaluated(metrics={}, answers=[])
        asked = [example for example in self.examples if example.expected is not None and example.prompt_length]
        wanted = asked if MetricName.ACCURACY in self.metrics else asked[: self.samples]
        metrics = self.loss_only(lambda done, of: tick(done, 2 * of) if wanted else tick(done, of))
        if not wanted:
            return Evaluated(metrics=metrics, answers=[])
        with self.autocast():
            answers = greedy_answers(
                self.causal,
                wanted,
                self.tokenizer,
                batch_size=self.batch_rows(),
                limit=answer_limit(wanted),
                device=self.device,
                tick=lambda done, of: tick(of + done, 2 * of),
                world=self.world,
            )
        if MetricName.ACCURACY in self.metrics:
            metrics[ACCURACY] = share_of_equal(wanted, answers)
        return Evaluated(metrics=metrics, answers=answers[: self.samples])

    def sample_examples(self) -> list[Example]:
        """The rows that `Evaluated.answers` belong to."""
        return [example for example in self.examples if example.expected is not None and example.prompt_length][: self.samples]


def share_of_equal(examples: Sequence[Example], answers: Sequence[str]) -> float:
    """Share of the answers that equal the completion, surrounding white space aside."""
    pairs = list(zip(examples, answers, strict=True))
    return sum(answer.strip() == (example.expected or "").strip() for example, answer in pairs) / len(pairs)


def metrics_of(spec: FineTuneJobSpec) -> frozenset[MetricName]:
    """The metrics asked for; by default accuracy for Classification, perplexity otherwise."""
    if spec.evaluation.metrics is not None:
        return frozenset(MetricName(metric.name) for metric in spec.evaluation.metrics)
    return frozenset({MetricName.ACCURACY if spec.task is Task.CLASSIFICATION else MetricName.PERPLEXITY})
