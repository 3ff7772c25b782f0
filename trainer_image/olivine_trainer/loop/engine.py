"""The machine that turns: model, adapter, optimizer and schedule on their device, and one optimizer step with it."""

import math
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel

from olivine_api.finetunejob import FineTuneJobSpec, Lora, Training
from olivine_trainer.data.batches import batch_rows, rank_micro_batches
from olivine_trainer.errors import NonFiniteLossError
from olivine_trainer.loop.schedule import Schedule
from olivine_trainer.methods.lora import add_lora, trainable
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import SummedLoss, can_split_head, collate
from olivine_trainer.modeling.precision import ResolvedPrecision


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: mean loss of its learned tokens, and how many tokens it saw."""

    loss: float
    grad_norm: float
    tokens: int
    learned_tokens: int


@dataclass(frozen=True)
class Engine:
    """Everything that an optimizer step moves."""

    accelerator: Accelerator
    model: PeftModel
    loss: SummedLoss
    prepared: Any
    """`loss` as accelerate wraps it."""
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    training: Training
    effective_batch: int
    pad_id: int

    @property
    def causal(self) -> Any:
        """The causal model itself, the adapter injected."""
        return self.model.get_base_model()

    def autocast(self) -> AbstractContextManager[None]:
        """The mixed precision that training computes in."""
        return self.accelerator.autocast()

    def train_step(self, examples: Sequence[Example], step: int, check: Callable[[], None]) -> StepResult:
        """Optimizer step `step` (from 0). `check` is called before each micro-batch and may raise: the step then never was.

        The loss is the mean over all learned tokens of the global batch, however it is divided into ranks and micro-batches:
        each of them contributes its sum x world / all tokens (ranks' gradients are averaged).
        """
        rows = batch_rows(self.training.seed, step, self.effective_batch, len(examples))
        world = self.accelerator.num_processes
        learned = sum(examples[row].learned_tokens for row in rows)
        micro_batches = rank_micro_batches(rows, rank=self.accelerator.process_index, world=world, micro=self.training.batch_size)
        self.loss.train()
        total = torch.zeros((), device=self.accelerator.device)
        for number, members in enumerate(micro_batches, start=1):
            try:
                check()
            except BaseException:
                self.optimizer.zero_grad(set_to_none=True)  # half a step is no step
                raise
            batch = collate([examples[row] for row in members], self.pad_id, self.accelerator.device)
            last = number == len(micro_batches)
            with nullcontext() if last else self.accelerator.no_sync(self.prepared):
                nll = self.prepared(batch.ids, batch.mask, batch.positions, batch.labels)
                self.accelerator.backward(nll * (world / max(learned, 1)))
            total += nll.detach()
        loss = self._global_mean(total, learned)
        if not math.isfinite(loss):
            raise NonFiniteLossError(step + 1, "the loss", self.schedule.learning_rate)
        return StepResult(
            loss=loss,
            grad_norm=self._move(step),
            tokens=sum(len(examples[row].ids) for row in rows),
            learned_tokens=learned,
        )

    def _global_mean(self, total: torch.Tensor, learned: int) -> float:
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, reduction="sum")  # pyright: ignore[reportAssignmentType]
        return float(total) / max(learned, 1)

    def _move(self, step: int) -> float:
        """Clip, step, schedule; the gradient's norm before clipping."""
        norm = float(self.accelerator.clip_grad_norm_(list(trainable(self.model).values()), self.training.max_grad_norm) or 0.0)
        scaled = self.accelerator.scaler is not None  # fp16: the scaler skips such a step and lowers its scale
        if not math.isfinite(norm) and not scaled:
            raise NonFiniteLossError(step + 1, "the gradient", self.schedule.learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        return norm


def make_accelerator(precision: ResolvedPrecision) -> Accelerator:
    """accelerate in this process; asserts that it found the world that the supervisor started."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with _alone() if world == 1 else nullcontext():
        accelerator = Accelerator(mixed_precision=precision.mixed, cpu=not torch.cuda.is_available())
    if accelerator.num_processes != world:
        raise RuntimeError(f"accelerate found {accelerator.num_processes} processes, the supervisor started {world}")
    return accelerator


def build_engine(spec: FineTuneJobSpec, base: Any, accelerator: Accelerator, *, total_steps: int, pad_id: int) -> Engine:
    """Adapter, optimizer and schedule around a loaded base model. Raises ConfigurationError for targets and schedule parameters."""
    training = spec.training
    base.to(accelerator.device)
    split_head = can_split_head(base)
    model = add_lora(base, spec.method.lora or Lora(), seed=training.seed)
    if training.gradient_checkpointing:
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    optimizer = make_optimizer(model, training)
    schedule = Schedule(training, optimizer, total_steps)
    loss = SummedLoss(model, model.get_base_model(), split_head=split_head)
    prepared, wrapped = accelerator.prepare(loss, optimizer)
    return Engine(
        accelerator=accelerator,
        model=model,
        loss=loss,
        prepared=prepared,
        optimizer=wrapped,
        schedule=schedule,
        training=training,
        effective_batch=training.batch_size * training.gradient_accumulation_steps * accelerator.num_processes,
        pad_id=pad_id,
    )


def make_optimizer(model: torch.nn.Module, training: Training) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); vectors (biases, norms) do not decay."""
    parameters = list(trainable(model).values())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=training.learning_rate)


@contextmanager
def _alone() -> Generator[None]:
    """Hide LOCAL_RANK: accelerate would set up process groups and DistributedDataParallel for one process on CUDA."""
    kept = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["LOCAL_RANK"] = kept
