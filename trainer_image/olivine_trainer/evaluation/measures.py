"""From the specification's metrics to what is computed: which keys each has in status, and over which answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from olivine_api.evaluation import Metric, MetricName
from olivine_api.finetunejob import FineTuneJobSpec, Task
from olivine_trainer.evaluation import texts
from olivine_trainer.evaluation.keys import ACCURACY, PERPLEXITY


@dataclass(frozen=True)
class Case:
    """One row with the model's answer."""

    expected: str
    answer: str


Compare = Callable[[Sequence[Case]], dict[str, float]]


@dataclass(frozen=True)
class Measure:
    """One metric."""

    keys: tuple[str, ...]
    """What it adds to status."""
    compare: Compare | None
    """None where it follows from the loss alone."""
    of_text: bool = False
    """Judges what is generated freely, also where answers are chosen among labels."""
    lower_is_better: bool = False


def _over(function: Callable[[Sequence[str], Sequence[str]], float], key: str) -> Compare:
    return lambda cases: {key: function([case.expected for case in cases], [case.answer for case in cases])}


def _macro(expected: Sequence[str], answers: Sequence[str]) -> float:
    return texts.f1_scores(expected, answers)[0]


def _micro(expected: Sequence[str], answers: Sequence[str]) -> float:
    return texts.f1_scores(expected, answers)[1]


def _rouge(cases: Sequence[Case]) -> dict[str, float]:
    return texts.rouge([case.expected for case in cases], [case.answer for case in cases])


_BUILT_IN = {
    MetricName.PERPLEXITY: Measure((PERPLEXITY,), None, lower_is_better=True),
    MetricName.ACCURACY: Measure((ACCURACY,), _over(texts.share_of_equal, ACCURACY)),
    MetricName.EXACT_MATCH: Measure(("exactMatch",), _over(texts.share_of_equal, "exactMatch"), of_text=True),
    MetricName.F1: Measure(("f1",), _over(_macro, "f1")),
    MetricName.MACRO_F1: Measure(("macroF1",), _over(_macro, "macroF1")),
    MetricName.MICRO_F1: Measure(("microF1",), _over(_micro, "microF1")),
    MetricName.BLEU: Measure(("bleu",), _over(texts.bleu, "bleu"), of_text=True),
    MetricName.ROUGE: Measure(("rouge1", "rouge2", "rougeL"), _rouge, of_text=True),
}

_DEFAULTS = {
    Task.CLASSIFICATION: (MetricName.ACCURACY, MetricName.F1),
    Task.SUMMARIZATION: (MetricName.ROUGE,),
}


def measure_of(metric: Metric) -> Measure:
    """What a metric of the specification computes."""
    return _BUILT_IN[MetricName(metric.name)]


def measures_of(spec: FineTuneJobSpec) -> tuple[Measure, ...]:
    """Those asked for; by default accuracy and F1 for Classification, ROUGE for Summarization, perplexity otherwise."""
    if spec.evaluation.metrics is not None:
        return tuple(measure_of(metric) for metric in spec.evaluation.metrics)
    return tuple(_BUILT_IN[name] for name in _DEFAULTS.get(spec.task, (MetricName.PERPLEXITY,)))
