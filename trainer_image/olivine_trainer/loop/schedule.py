"""Learning-rate schedules: every name that transformers knows, its parameters checked, its state as JSON."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR, get_scheduler
from transformers.trainer_utils import SchedulerType

from olivine_api.finetunejob import Scheduler, Training
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError

# These follow a measured loss, not the step.
_MEASURED = (Scheduler.REDUCE_LR_ON_PLATEAU, Scheduler.GREEDY)
_WITHOUT_WARMUP = (*_MEASURED, Scheduler.CONSTANT)
_GIVEN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs", "self", "epoch", "verbose"}
_GREEDY_FLOOR = 1e-3  # transformers' default of min_lr
_PROBES = 1000  # of a schedule, evenly over the run: its phases are few and long


class Schedule:
    """One schedule over one optimizer; `follows_loss` says that it moves by `observe` alone."""

    def __init__(self, training: Training, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self.follows_loss = training.scheduler in _MEASURED
        self._optimizer = optimizer
        self._scheduler: Any = _build(training, optimizer, total_steps)

    @property
    def learning_rate(self) -> float:
        """Of the first group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """After each optimizer step."""
        if not self.follows_loss:
            self._scheduler.step()

    def observe(self, loss: float) -> None:
        """After each measured loss: the validation loss where evaluation.everySteps measures it, else each step's training loss."""
        if self.follows_loss:
            self._scheduler.step(loss)

    def state(self) -> dict[str, Any]:
        """JSON-able; floats survive exactly."""
        return {
            "scheduler": self._scheduler.state_dict(),
            "groups": [{key: group[key] for key in ("lr", "initial_lr") if key in group} for group in self._optimizer.param_groups],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave; the optimizer's rates too, which a scheduler sets only at its next step."""
        self._scheduler.load_state_dict(state["scheduler"])
        for group, saved in zip(self._optimizer.param_groups, state["groups"], strict=True):
            group.update(saved)


def _build(training: Training, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    name = training.scheduler
    given = {key: _whole(value) for key, value in (training.scheduler_parameters or {}).items()}
    known = parameters_of(name)
    if unknown := sorted(set(given) - set(known)):
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"training.schedulerParameters names {', '.join(unknown)}, which scheduler {name} does not have: {takes}",
        )
    if training.warmup_steps and name in _WITHOUT_WARMUP:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"training.warmupSteps is {training.warmup_steps}, but scheduler {name} has no warm-up: remove it, or use constant_with_warmup",
        )
    longest = total_steps - 1 if name is Scheduler.POLYNOMIAL else total_steps  # it divides by the steps after the warm-up
    if training.warmup_steps > longest:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"training.warmupSteps is {training.warmup_steps}, but training has {total_steps} steps in all:"
            f" lower training.warmupSteps to {longest} or less, or raise training.epochs or training.maxSteps",
        )
    if name is Scheduler.GREEDY and "min_lr" not in given and training.learning_rate < _GREEDY_FLOOR:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"scheduler greedy raises training.learningRate {training.learning_rate:g} to its min_lr of {_GREEDY_FLOOR:g}:"
            " write training.schedulerParameters.min_lr",
        )

    def make(moved: torch.optim.Optimizer) -> Any:
        return get_scheduler(
            name.value,
            moved,
            num_warmup_steps=training.warmup_steps,
            num_training_steps=total_steps,
            scheduler_specific_kwargs=given,  # pyright: ignore[reportArgumentType]
        )

    try:
        _require_numbers(name, given)
        # Some parameters are first looked at when training is nearly done.
        trial = torch.optim.SGD([torch.zeros(1)], lr=training.learning_rate)
        _try_out(make(trial), trial, training.warmup_steps, total_steps)
        return make(optimizer)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigurationError(
            Reason.INVALID_SPEC, f"training.schedulerParameters does not suit scheduler {name}: {error}"
        ) from None


def parameters_of(name: Scheduler) -> list[str]:
    """The parameters that schedulerParameters may give, sorted."""
    if name in (Scheduler.CONSTANT, Scheduler.CONSTANT_WITH_WARMUP):
        return []
    return sorted(set(_signature(name)) - _GIVEN)


def _signature(name: Scheduler) -> Mapping[str, inspect.Parameter]:
    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name.value)]
    if name is Scheduler.REDUCE_LR_ON_PLATEAU:
        function = torch.optim.lr_scheduler.ReduceLROnPlateau.__init__
    elif name is Scheduler.GREEDY:
        function = GreedyLR.__init__
    return inspect.signature(function).parameters


def _require_numbers(name: Scheduler, given: Mapping[str, str | float]) -> None:
    """Raise ValueError for a text where a number belongs: a parameter is a text if its default is one."""
    parameters = _signature(name)
    for key, value in given.items():
        textual = isinstance(parameters[key].default, str)
        if not textual and (isinstance(value, str) or not math.isfinite(value)):
            raise ValueError(f"{key} is {value!r}, it must be a finite number")


def _try_out(scheduler: Any, optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> None:
    """Raise an error where the scheduler, to be thrown away, fails later in training or gives what is no learning rate."""
    if isinstance(scheduler, LambdaLR):
        steps = {*range(0, total_steps, max(1, total_steps // _PROBES)), warmup_steps, total_steps - 1, total_steps}
        for step in sorted(steps):
            when = f"after step {step} of {total_steps}"
            try:
                rate = scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step)
            except (ValueError, ArithmeticError) as error:
                raise ValueError(f"the learning rate {when} cannot be computed: {error}") from None
            _require_rate(rate, when)
        return
    scheduler.patience = 0  # a better loss and an equal one move the rate at once
    for _ in range(3):
        scheduler.step(1.0)
        _require_rate(optimizer.param_groups[0]["lr"], "after a measured loss")


def _require_rate(rate: object, when: str) -> None:
    if not isinstance(rate, int | float) or not math.isfinite(rate) or rate < 0:
        raise ValueError(f"the learning rate {when} would be {rate}, it must be a finite number from 0")


def _whole(value: str | float) -> str | float | int:
    """JSON numbers arrive as floats; counts must be integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
