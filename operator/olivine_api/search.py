"""Hyperparameter search."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel, Rule
from olivine_api.parameters import Scalar

FieldPath = Annotated[str, StringConstraints(max_length=128)]


class Prune(ApiModel):
    """When a hopeless trial is ended early."""

    strategy: Literal["Median"] = "Median"
    warmup_steps: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    """No trial is pruned before so many steps."""


class Dimension(ApiModel):
    """What one field may be."""

    rules = (
        Rule(
            cel="self.type == 'choice' ? !has(self.low) && !has(self.high) : has(self.low) && has(self.high) && self.low <= self.high",
            holds=lambda d: (
                d.low is None and d.high is None
                if d.type == "choice"
                else d.low is not None and d.high is not None and d.low <= d.high
            ),
            message="a dimension of search.space has low <= high with type float or int, and neither with type choice",
        ),
        Rule(
            holds=lambda d: (d.values is not None) == (d.type == "choice"),
            message="a dimension of search.space has values with type choice, and only there",
        ),
        Rule(
            cel="!self.log || (has(self.low) && self.low > 0.0)",
            holds=lambda d: not d.log or (d.low is not None and d.low > 0),
            message="log: true in search.space needs low above 0",
        ),
    )

    type: Literal["float", "int", "choice"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    """Draw evenly over the logarithm."""
    values: Annotated[list[Scalar], Field(min_length=1, max_length=64)] | None = None


class Search(ApiModel):
    """A search over the specification's own fields; each trial is a FineTuneJob."""

    rules = (
        Rule(
            cel="self.parallelism <= self.trials",
            holds=lambda s: s.parallelism <= s.trials,
            message="search.parallelism must not exceed search.trials",
            field_path=".parallelism",
        ),
    )

    strategy: Literal["Random", "TPE", "Grid"] = "Random"
    trials: Annotated[int, Field(ge=1, le=1000)]
    parallelism: Annotated[int, Field(ge=1, le=100)] = 1
    metric: Annotated[str, StringConstraints(min_length=1, max_length=64)] = "eval_loss"
    mode: Literal["min", "max"] = "min"
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 0
    prune: Prune | None = None
    space: Annotated[dict[FieldPath, Dimension], Field(min_length=1, max_length=16)]
    """Keys are field paths, e.g. training.learningRate."""
