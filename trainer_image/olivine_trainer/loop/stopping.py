"""Early stopping: training ends where a metric has not improved for so many evaluations, and the best weights are published."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from olivine_api.base import StatusModel
from olivine_api.finetunejob import EarlyStopping
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.evaluation.evaluate import EVAL_LOSS, PERPLEXITY

_CHEAP = (EVAL_LOSS, PERPLEXITY)


class Stopping(StatusModel):
    """What the evaluations so far say; part of every checkpoint."""

    best: float | None = None
    best_step: int = Field(default=0, ge=0)
    """0: no evaluation gave a number yet."""
    worse: int = Field(default=0, ge=0)
    """Evaluations since the best one."""

    def after(self, step: int, value: float | None, asked: EarlyStopping) -> "Stopping":
        """With one more evaluation; one that gave no number (NaN, infinite) is no improvement."""
        if value is None or not self._improved_by(value, asked):
            return self.model_copy(update={"worse": self.worse + 1})
        return Stopping(best=value, best_step=step)

    def over(self, asked: EarlyStopping) -> bool:
        """Whether patience is at its end."""
        return self.worse >= asked.patience

    def _improved_by(self, value: float, asked: EarlyStopping) -> bool:
        if self.best is None:
            return True
        gain = self.best - value if asked.mode == "min" else value - self.best
        return gain > asked.min_delta


def metric_of(asked: EarlyStopping) -> str:
    """The metric as evaluations name it: eval_loss is evalLoss."""
    return EVAL_LOSS if asked.metric == "eval_loss" else asked.metric


def needs_answers(asked: EarlyStopping | None) -> bool:
    """Whether each evaluation must measure everything: the validation loss alone does not tell the metric."""
    return asked is not None and metric_of(asked) not in _CHEAP


def require_measured(asked: EarlyStopping, measured: Mapping[str, float]) -> None:
    """Raise ConfigurationError where the metric is none that evaluations measure (`measured`: those of the base model)."""
    if metric_of(asked) not in measured:
        known = sorted("eval_loss" if name == EVAL_LOSS else name for name in measured)
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"training.earlyStopping.metric is {asked.metric}, which is not measured: write one of {', '.join(known)},"
            " or add it to evaluation.metrics",
        )


def best_weights(scratch: Path) -> Path:
    """Where the weights of the best evaluation wait for the end."""
    return scratch / "best.safetensors"
