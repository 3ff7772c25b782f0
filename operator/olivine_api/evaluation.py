"""What is measured, and what a result must reach."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel, Rule
from olivine_api.parameters import Plugin
from olivine_api.sources import PLACE_RULE, Uri

MetricText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]


class MetricName(StrEnum):
    """Built-in metrics that this release measures."""

    ACCURACY = "accuracy"
    PERPLEXITY = "perplexity"
    EXACT_MATCH = "exact_match"
    F1 = "f1"
    MACRO_F1 = "macro_f1"
    MICRO_F1 = "micro_f1"
    BLEU = "bleu"
    ROUGE = "rouge"
    SEQEVAL = "seqeval"


class Metric(Plugin):
    """One metric: accuracy and exact_match are the share of answers that equal the completion; f1 (macro_f1) and micro_f1 take completions as labels; bleu (0 to 100) is sacrebleu's, rouge gives rouge1, rouge2 and rougeL; seqeval (task Extraction) gives entityF1, entityPrecision, entityRecall and malformedAnswers, the number of answers that could not be read whole; perplexity is exp(eval_loss)."""


class Benchmark(ApiModel):
    """A file of one's own domain, measured before and after; none of its rows is trained on."""

    rules = (PLACE_RULE,)

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=32)]
    """What its numbers begin with in status: cards gives cardsAccuracy."""
    uri: Uri
    """Rows as data.train has them; of a bucket or a claim, with storage's keys."""
    metric: MetricText
    """eval_loss, a built-in metric, or one of evaluation.metrics."""


class Gate(ApiModel):
    """What the tuned model must reach to be published; an unmet gate keeps the artifact unpublished."""

    rules = (
        Rule(
            cel="has(self.manual) && self.manual"
            " ? !(has(self.metric) || has(self.min) || has(self.max) || has(self.improvesOnBase))"
            " : has(self.metric) && (has(self.min) || has(self.max) || has(self.improvesOnBase))",
            holds=lambda g: (
                (g.metric is None and g.min is None and g.max is None and g.improves_on_base is None)
                if g.manual
                else g.metric is not None and not (g.min is None and g.max is None and g.improves_on_base is None)
            ),
            message="an entry of evaluation.gates is either manual: true alone, or a metric with min, max or improvesOnBase",
        ),
    )

    metric: MetricText | None = None
    """One that is measured: eval_loss, accuracy, …, by its name in evaluation.metrics or in status; test_accuracy for data.test."""
    min: float | None = None
    max: float | None = None
    improves_on_base: bool | None = None
    """Strictly better than the base model: lower for losses, perplexity and malformedAnswers, higher for the rest."""
    manual: bool | None = None
    """A person approves."""


class Evaluation(ApiModel):
    """What is measured, of the base model first and of the tuned model after, by the same code."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Evaluate the validation loss every so many steps. Default: at the end only."""
    metrics: Annotated[list[Metric], Field(max_length=16)] | None = None
    """Default by task: accuracy and f1 for Classification, rouge for Summarization, seqeval for Extraction, perplexity otherwise. eval_loss is always measured; names are camelCase in status."""
    benchmarks: Annotated[list[Benchmark], Field(max_length=16)] | None = None
    gates: Annotated[list[Gate], Field(max_length=16)] | None = None
    samples: Annotated[int, Field(ge=0, le=64)] = 8
    """How many answers of base and tuned model are kept beside the artifact."""
