"""What metrics are called in status: camelCase, and after whose rows."""

from collections.abc import Collection

from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError

EVAL_LOSS = "evalLoss"
PERPLEXITY = "perplexity"
ACCURACY = "accuracy"


def camel(name: str) -> str:
    """exact_match -> exactMatch; what is camelCase already stays."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def require_measured(field: str, metric: str, measured: Collection[str]) -> None:
    """Raise ConfigurationError where the metric that `field` names is none of the keys that evaluations give."""
    if camel(metric) in measured:
        return
    known = f"measured are {', '.join(measured)}" if measured else "nothing is measured without rows: give data.validation"
    raise ConfigurationError(
        Reason.INVALID_SPEC,
        f"{field} is {metric}, which is not measured: {known}; name one of them, or add the metric to evaluation.metrics",
    )


def require_followed(field: str, metric: str, followed: Collection[str], measured: Collection[str]) -> None:
    """As `require_measured`, for a metric that decides while training: data.test and benchmarks must have no part in that."""
    if camel(metric) in followed or camel(metric) not in measured or not followed:
        require_measured(field, metric, followed)
        return
    raise ConfigurationError(
        Reason.INVALID_SPEC,
        f"{field} is {metric}, which is of data.test or a benchmark: training that ends by it has seen these rows, and they are measured"
        f" only before and after; name a metric of the validation rows ({', '.join(followed)}), and put {metric} into evaluation.gates",
    )


def key_of(rows: str, metric: str) -> str:
    """The key of a metric over named rows: test + accuracy -> testAccuracy, test + evalLoss -> testLoss; '' names validation."""
    if not rows:
        return metric
    metric = "loss" if metric == EVAL_LOSS else metric
    return camel(rows.replace("-", "_")) + metric[:1].upper() + metric[1:]
