"""What is measured, over which rows: the specification's metrics, data.test, benchmarks; bounded, each under a name of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence

from olivine_api.finetunejob import FineTuneJobSpec, MetricName, own_classes
from olivine_api.reasons import Reason
from olivine_trainer.data.prepare import Prepared
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.evaluation.evaluate import RowSet
from olivine_trainer.evaluation.keys import EVAL_LOSS
from olivine_trainer.evaluation.measures import Measure, measure_of, measures_of
from olivine_trainer.evaluation.own import own_measure
from olivine_trainer.job import Job
from olivine_trainer.loop.answers import has_head
from olivine_trainer.plugins import import_own

_MOST = 24  # of the 32 numbers that status holds: the trainer adds some of its own
_LOSS_METRIC = "eval_loss"


def measures_for(job: Job) -> dict[str, Measure]:
    """The specification's metrics by name, the user's classes imported. Raises ConfigurationError for a class that is not usable."""
    metrics = [(field, plugin) for field, plugin in own_classes(job.spec) if field != "training.loss"]
    own = {plugin.name: own_measure(plugin.name, import_own(plugin, field, job.plugins)) for field, plugin in metrics}
    return measures_of(job.spec, own)


def row_sets(spec: FineTuneJobSpec, data: Prepared, measures: Mapping[str, Measure]) -> list[RowSet]:
    """data.test with all metrics, and each benchmark with its own.

    Raises ConfigurationError where status could not hold all of it.
    """
    sets = [RowSet("test", data.test, tuple(measures.values()))]
    for benchmark in spec.evaluation.benchmarks or ():
        examples = data.benchmarks[benchmark.name]
        if benchmark.metric == _LOSS_METRIC:
            sets.append(RowSet(benchmark.name, examples, ()))
        else:
            measure = measures.get(benchmark.metric) or measure_of(benchmark.metric, spec)
            _require_fitting(spec, benchmark.name, benchmark.metric, measure)
            sets.append(RowSet(benchmark.name, examples, (measure,), with_loss=False))
    keys = ["trainLoss", EVAL_LOSS]
    keys += [key for measure in measures.values() for key in measure.keys]
    _check(keys + [key for rows in sets for key in rows.keys])
    return sets


def _require_fitting(spec: FineTuneJobSpec, name: str, metric: str, measure: Measure) -> None:
    """What evaluation.metrics' own rules say, for a benchmark."""
    why = None
    if metric == MetricName.SEQEVAL and spec.data.extraction is None:
        why = "is over entities, which only task Extraction has: write accuracy"
    elif measure.of_text and has_head(spec):
        why = "judges generated text, and a classification head generates none: write accuracy or f1"
    if why is not None:
        raise ConfigurationError(Reason.INVALID_SPEC, f"the metric {metric} of evaluation.benchmarks {name} {why}")


def _check(keys: Sequence[str]) -> None:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"evaluation gives two numbers the name {twice[0]} (status has it once): give your own metric, or the benchmark, another name",
        )
    if len(keys) > _MOST:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"evaluation asks for {len(keys)} numbers ({', '.join(keys[:8])}, …), status holds {_MOST}: name fewer metrics or benchmarks",
        )
