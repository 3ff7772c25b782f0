"""What is measured, over which rows: the specification's metrics, data.test, benchmarks, and a bound on their number."""

from collections import Counter
from collections.abc import Sequence

from olivine_api.finetunejob import FineTuneJobSpec, own_classes
from olivine_api.reasons import Reason
from olivine_trainer.data.prepare import Prepared
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.evaluation.evaluate import RowSet
from olivine_trainer.evaluation.keys import EVAL_LOSS, camel
from olivine_trainer.evaluation.measures import Measure, measure_of, measures_of
from olivine_trainer.evaluation.own import own_measure
from olivine_trainer.job import Job
from olivine_trainer.plugins import import_own

_MOST = 24  # of 32 numbers that status holds: the trainer adds some of its own


def measures_for(job: Job) -> dict[str, Measure]:
    """The specification's metrics by name, the user's classes imported. Raises ConfigurationError for a class that is not usable."""
    own = {plugin.name: import_own(plugin, field, job.plugins) for field, plugin in own_classes(job.spec) if field != "training.loss"}
    found = measures_of(job.spec, {name: own_measure(name, one) for name, one in own.items()})
    counts = Counter(key for measure in found.values() for key in (*measure.keys, EVAL_LOSS) if key != EVAL_LOSS or key in measure.keys)
    counts.update([EVAL_LOSS, "trainLoss"])
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ConfigurationError(
            Reason.INVALID_SPEC, f"evaluation.metrics gives {twice[0]} twice: rename your own metric, or name each metric once"
        )
    return found


def row_sets(spec: FineTuneJobSpec, data: Prepared, measures: dict[str, Measure]) -> list[RowSet]:
    """data.test with all metrics, and each benchmark with its own."""
    sets = [RowSet("test", data.test, tuple(measures.values()))]
    for number, benchmark in enumerate(spec.evaluation.benchmarks or ()):
        examples = data.benchmarks[benchmark.name]
        if benchmark.metric == "eval_loss":
            sets.append(RowSet(benchmark.name, examples, ()))
            continue
        measure = measures.get(benchmark.metric) or measure_of(benchmark.metric, spec, f"evaluation.benchmarks[{number}].metric")
        sets.append(RowSet(benchmark.name, examples, (measure,), with_loss=False))
    return sets


def require_few(keys: Sequence[str]) -> None:
    """Raise ConfigurationError where status could not hold them."""
    counts = Counter(keys)
    twice = [key for key, count in counts.items() if count > 1]
    if twice or len(keys) > _MOST:
        what = f"{twice[0]} twice" if twice else f"{len(keys)} numbers, status holds {_MOST}"
        raise ConfigurationError(
            Reason.INVALID_SPEC, f"evaluation measures {what}: name fewer metrics and benchmarks, or other ones ({camel('eval_loss')}, …)"
        )
