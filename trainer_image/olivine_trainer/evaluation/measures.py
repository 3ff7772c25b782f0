"""From the specification's metrics to what is computed: which keys each has in status, and over which answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from olivine_api.evaluation import MetricName
from olivine_api.finetunejob import FineTuneJobSpec, Task
from olivine_trainer.evaluation import texts
from olivine_trainer.evaluation.entities import ENTITY_KEYS, entity_scores
from olivine_trainer.evaluation.keys import ACCURACY, PERPLEXITY


@dataclass(frozen=True)
class Case:
    """One row with the model's answer."""

    expected: str
    answer: str
    source: str = ""
    """The text that entities are extracted from."""


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
    lower: tuple[str, ...] = ()
    """Those of its keys that are better when lower."""


def _over(function: Callable[[Sequence[str], Sequence[str]], float], key: str) -> Compare:
    return lambda cases: {key: function([case.expected for case in cases], [case.answer for case in cases])}


def _macro(expected: Sequence[str], answers: Sequence[str]) -> float:
    return texts.f1_scores(expected, answers)[0]


def _micro(expected: Sequence[str], answers: Sequence[str]) -> float:
    return texts.f1_scores(expected, answers)[1]


def _rouge(cases: Sequence[Case]) -> dict[str, float]:
    return texts.rouge([case.expected for case in cases], [case.answer for case in cases])


_BUILT_IN = {
    MetricName.PERPLEXITY: Measure((PERPLEXITY,), None, lower=(PERPLEXITY,)),
    MetricName.ACCURACY: Measure((ACCURACY,), _over(texts.share_of_equal, ACCURACY)),
    MetricName.EXACT_MATCH: Measure(("exactMatch",), _over(texts.share_of_equal, "exactMatch"), of_text=True),
    MetricName.F1: Measure(("f1",), _over(_macro, "f1")),
    MetricName.MACRO_F1: Measure(("macroF1",), _over(_macro, "macroF1")),
    MetricName.MICRO_F1: Measure(("microF1",), _over(_micro, "microF1")),
    MetricName.BLEU: Measure(("bleu",), _over(texts.bleu, "bleu"), of_text=True),
    MetricName.ROUGE: Measure(("rouge1", "rouge2", "rougeL"), _rouge, of_text=True),
    MetricName.SEQEVAL: Measure(ENTITY_KEYS, None, lower=("malformedAnswers",)),
}

_DEFAULTS = {
    Task.EXTRACTION: (MetricName.SEQEVAL,),
    Task.CLASSIFICATION: (MetricName.ACCURACY, MetricName.F1),
    Task.SUMMARIZATION: (MetricName.ROUGE,),
}


def measure_of(name: str, spec: FineTuneJobSpec) -> Measure:
    """What a built-in metric computes."""
    measure = _BUILT_IN[MetricName(name)]
    extraction = spec.data.extraction
    if name != MetricName.SEQEVAL or extraction is None:
        return measure

    def compare(cases: Sequence[Case]) -> dict[str, float]:
        return entity_scores(
            extraction.format, [case.source for case in cases], [case.expected for case in cases], [case.answer for case in cases]
        )

    return replace(measure, compare=compare)


def measures_of(spec: FineTuneJobSpec, own: Mapping[str, Measure]) -> dict[str, Measure]:
    """Those asked for, by name; `own` has those that are no built-in.

    By default accuracy and F1 for Classification, ROUGE for Summarization, seqeval for Extraction, perplexity otherwise.
    """
    if spec.evaluation.metrics is not None:
        return {metric.name: own.get(metric.name) or measure_of(metric.name, spec) for metric in spec.evaluation.metrics}
    return {name: measure_of(name, spec) for name in _DEFAULTS.get(spec.task, (MetricName.PERPLEXITY,))}
