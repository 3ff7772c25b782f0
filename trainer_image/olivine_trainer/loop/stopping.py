"""Early stopping: training ends where a metric has not improved for so many evaluations, and the best weights are published."""

from pathlib import Path

from pydantic import Field

from olivine_api.base import StatusModel
from olivine_api.finetunejob import EarlyStopping
from olivine_trainer.evaluation.keys import EVAL_LOSS, PERPLEXITY, camel

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
    """The metric's key in what evaluations give."""
    return camel(asked.metric)


def needs_answers(asked: EarlyStopping | None) -> bool:
    """Whether each evaluation must measure all of the validation rows' metrics: their loss alone does not tell the metric."""
    return asked is not None and metric_of(asked) not in _CHEAP


def best_weights(scratch: Path) -> Path:
    """Where the weights of the best evaluation wait for the end."""
    return scratch / "best.safetensors"
