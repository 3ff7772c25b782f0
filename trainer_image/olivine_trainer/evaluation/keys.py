"""What metrics are called in status: camelCase, and after whose rows."""

EVAL_LOSS = "evalLoss"
PERPLEXITY = "perplexity"
ACCURACY = "accuracy"


def camel(name: str) -> str:
    """exact_match -> exactMatch; what is camelCase already stays."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def key_of(rows: str, metric: str) -> str:
    """The key of a metric over named rows: test + accuracy -> testAccuracy, test + evalLoss -> testLoss; '' names validation."""
    if not rows:
        return metric
    metric = "loss" if metric == EVAL_LOSS else metric
    return camel(rows.replace("-", "_")) + metric[:1].upper() + metric[1:]
