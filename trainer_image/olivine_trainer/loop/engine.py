"""The machine that turns: model, method, optimizer and schedule on their device, and one optimizer step with it."""

import math
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from olivine_api.finetunejob import FineTuneJobSpec, MethodType, Optimizer, Training
from olivine_api.reasons import Reason
from olivine_trainer.data.batches import TrainingRows, rank_micro_batches
from olivine_trainer.data.grouping import by_length
from olivine_trainer.errors import ConfigurationError, NonFiniteLossError
from olivine_trainer.faults import first_line, is_out_of_memory
from olivine_trainer.loop.optimizers import make_optimizer
from olivine_trainer.loop.schedule import Schedule
from olivine_trainer.losses.build import make_loss
from olivine_trainer.methods.choose import put_on
from olivine_trainer.methods.method import Method, trainable
from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import Batch, SummedLoss, can_split_head, collate
from olivine_trainer.modeling.packing import keeps_rows_apart
from olivine_trainer.modeling.precision import ResolvedPrecision
from olivine_trainer.plugins import OwnClass
from olivine_trainer.world.shards import Shards
from olivine_trainer.world.world import World

# Of fp16's scaler: 30 steps in a row were skipped by then, and scale was not what they lacked.
_LOWEST_SCALE = 2.0**-14

_DIVISIBLE = (Optimizer.ADAMW_TORCH, Optimizer.ADAMW_TORCH_FUSED, Optimizer.SGD)  # states of the parameters' own shapes


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: mean loss of its learned tokens, and how many tokens it saw."""

    loss: float
    grad_norm: float
    tokens: int
    learned_tokens: int
    input_seconds: float = 0.0
    """That this rank spent on preparing rows."""
    truncated: int = 0
    """Rows that were cut to data.maxLength."""


@dataclass
class _Sums:
    """A rank's losses of one step, and what they are of."""

    total: torch.Tensor
    input_seconds: float = 0.0
    parts: list[tuple[Sequence[Example], torch.Tensor]] = field(default_factory=list[tuple[Sequence[Example], torch.Tensor]])

    def add(self, members: Sequence[Example], loss: torch.Tensor) -> None:
        """One micro-batch's; nothing is read from the device here."""
        self.total += loss
        self.parts.append((members, loss))

    def not_finite(self) -> list[int]:
        """The numbers of the rows in micro-batches whose loss is no number."""
        return [example.number for members, loss in self.parts if not math.isfinite(float(loss)) for example in members]


@dataclass(frozen=True)
class Engine:
    """Everything that an optimizer step moves."""

    world: World
    accelerator: Accelerator
    method: Method
    loss: SummedLoss
    prepared: Any
    """`loss` as accelerate wraps it."""
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    training: Training
    effective_batch: int
    pad_id: int
    packed: bool = False
    """Rows of a micro-batch may share sequences (data.packing)."""
    shards: Shards | None = None
    """Where the model is divided among the ranks: `method` and `loss` are then its face's, which has weights inside `whole` only."""

    @property
    def model(self) -> torch.nn.Module:
        """Holds every parameter; the trained ones require gradients."""
        return self.method.model

    @property
    def causal(self) -> Any:
        """The causal model itself, what is trained included."""
        return self.method.causal

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What the optimizer moves, by name, sorted."""
        return trainable(self.model) if self.shards is None else self.shards.parameters

    def whole(self, device: torch.device | None = None) -> AbstractContextManager[None]:
        """While it is open, `method`, `loss` and `causal` have all weights, on `device` (default: the engine's). All ranks come."""
        return nullcontext() if self.shards is None else self.shards.whole(device)

    def let_go(self) -> None:
        """Give back the memory of weights, gradients and optimizer: the engine is of no use any more, what comes after needs the room."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        with torch.no_grad():
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)

    def autocast(self) -> AbstractContextManager[None]:
        """The mixed precision that training computes in."""
        return self.accelerator.autocast()

    def train_step(self, rows: TrainingRows, step: int, micro: int, go_on: Callable[..., None]) -> StepResult:
        """Optimizer step `step` (from 0), in micro-batches of at most `micro` rows a rank.

        `go_on` (Agreement) is called before each micro-batch and after the last; where it raises, the step never was.
        The loss is the mean over all learned tokens (or pairs) of the global batch, however it is divided into ranks and micro-batches:
        each of them contributes its sum / all tokens, and gradients are summed over the ranks once, after the last.
        """
        start = time.monotonic()
        # Which rows a step has, length does not decide here: only which of them are padded together.
        examples = by_length(rows.batch(self.training.seed, step, self.effective_batch))
        drawn = time.monotonic() - start
        weight = sum(example.weight for example in examples)
        micro_batches = rank_micro_batches(examples, rank=self.world.rank, world=self.world.size, micro=micro)
        self.prepared.train()
        try:
            sums = self._accumulate(micro_batches, weight, go_on, filler=examples[:1])
        except BaseException:
            self.optimizer.zero_grad(set_to_none=True)  # half a step is no step
            raise
        loss = self.world.sums([float(sums.total)])[0] / max(weight, 1)
        if not math.isfinite(loss):
            guilty = [number for numbers in self.world.gather(sums.not_finite()) for number in numbers]
            raise NonFiniteLossError(step + 1, "the loss", self.schedule.learning_rate, rows=guilty)
        return StepResult(
            loss=loss,
            grad_norm=self._move(step, examples),
            input_seconds=drawn + sums.input_seconds,
            tokens=sum(example.tokens for example in examples),
            learned_tokens=sum(example.learned_tokens for example in examples),
            truncated=sum(example.truncated for example in examples),
        )

    def _accumulate(
        self, micro_batches: Sequence[Sequence[Example]], weight: int, go_on: Callable[..., None], *, filler: Sequence[Example]
    ) -> "_Sums":
        """This rank's gradients; returns its summed losses. Memory that runs out is told to all ranks at the next `go_on`.

        `filler`: what a rank computes in vain that has no rows left, where the others need its part of the weights.
        """
        sums = _Sums(torch.zeros((), device=self.accelerator.device))
        exhausted: str | None = None
        for members in micro_batches:
            go_on(exhausted)
            if not members and self.shards is None:
                continue  # rows that do not divide evenly: this rank has none left
            try:
                start = time.monotonic()
                batch = collate(members or filler, self.pad_id, self.accelerator.device, packed=self.packed)
                sums.input_seconds += time.monotonic() - start
                sums.add(members, self.add_gradients(batch, weight, counts=bool(members)))
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error) or self.shards is not None:  # the others wait in the middle of a layer for this rank
                    raise
                exhausted = first_line(error)  # not the error itself: its frames hold the tensors
        go_on(exhausted, step_done=True)
        return sums

    def add_gradients(self, batch: Batch, weight: int, *, counts: bool = True) -> torch.Tensor:
        """Forward and backward of a micro-batch; its summed loss, that weighs nothing unless it `counts`."""
        if self.shards is None:
            nll = self.prepared(batch)
            self.accelerator.backward(nll * (1 / max(weight, 1)))
            return nll.detach()
        with self.world.collectives():
            with self.autocast():
                nll = self.prepared(batch) * float(counts)
            # FSDP2 gives the mean over the ranks; what is wanted is the sum.
            self.accelerator.backward(nll * (self.world.size / max(weight, 1)))
        return nll.detach()

    def _move(self, step: int, examples: Sequence[Example]) -> float:
        """Sum over the ranks, clip, step, schedule; the gradient's norm before clipping."""
        norm = self._clip()
        scaler = self.accelerator.scaler
        if not may_go_on(norm, scaler.get_scale() if scaler is not None else None):
            numbers = [example.number for example in examples]
            raise NonFiniteLossError(step + 1, "the gradient", self.schedule.learning_rate, rows=numbers)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        return norm

    def _clip(self) -> float:
        """Sum over the ranks and clip; the norm before."""
        if self.shards is not None:
            return self.shards.clip(self.training.max_grad_norm)
        parameters = list(self.trained.values())
        self.world.sum_tensors(self._gradients(parameters))
        return float(self.accelerator.clip_grad_norm_(parameters, self.training.max_grad_norm) or 0.0)

    def _gradients(self, parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
        if self.world.size == 1:
            return []
        for parameter in parameters:
            if parameter.grad is None:  # a rank without rows, or an unused expert: the others' sum is its gradient too
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]


def may_go_on(norm: float, scale: float | None) -> bool:
    """Whether the gradient is finite, or fp16's scaler (None: there is none) skips the step and may mend it by a lower scale."""
    return math.isfinite(norm) or (scale is not None and scale > _LOWEST_SCALE)


def make_accelerator(precision: ResolvedPrecision, world: World) -> Accelerator:
    """accelerate in this process, over the process group where there is one; asserts that it found all ranks."""
    with _alone() if world.size == 1 else nullcontext():
        accelerator = Accelerator(mixed_precision=precision.mixed, cpu=not torch.cuda.is_available())
    if (accelerator.num_processes, accelerator.process_index) != (world.size, world.rank):
        found = f"rank {accelerator.process_index} of {accelerator.num_processes}"
        raise RuntimeError(f"accelerate found {found}, the supervisor started rank {world.rank} of {world.size}")
    return accelerator


def build_engine(
    spec: FineTuneJobSpec,
    base: Any,
    accelerator: Accelerator,
    world: World,
    *,
    total_steps: int,
    effective_batch: int,
    pad_id: int,
    own_loss: OwnClass | None = None,
) -> Engine:
    """Method, optimizer and schedule around a loaded base model. Raises ConfigurationError for targets and schedule parameters."""
    training = spec.training
    divided = is_divided(spec, world)
    if not divided:
        base.to(accelerator.device)
    else:
        _require_divisible(training, accelerator)
    split_head = can_split_head(base)
    packed = spec.data.packing is not False and own_loss is None and keeps_rows_apart(base)
    if spec.data.packing and not packed:
        raise ConfigurationError(
            Reason.MODEL_UNSUPPORTED,
            f"data.packing is true, but {type(base).__name__} lets packed rows see one another: leave data.packing out",
        )
    method = put_on(base, spec.method, seed=training.seed)
    if training.gradient_checkpointing:
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    loss = make_loss(training.loss, own_loss, method.model, method.causal, split_head=split_head)
    shards = None
    if divided:
        shards = Shards(base, loss, world, accelerator.device)
        method = put_on(shards.face, spec.method, seed=training.seed)
        prepared, loss = loss, make_loss(training.loss, own_loss, method.model, method.causal, split_head=split_head)
    else:
        # No DistributedDataParallel (docs/decisions/): evaluation_mode leaves it out; autocast and device stay accelerate's.
        prepared = accelerator.prepare_model(loss, evaluation_mode=True)
    optimizer = make_optimizer(base if divided else method.model, training)
    schedule = Schedule(training, optimizer, total_steps)
    wrapped = accelerator.prepare_optimizer(optimizer)
    return Engine(
        world=world,
        accelerator=accelerator,
        method=method,
        loss=loss,
        prepared=prepared,
        optimizer=wrapped,
        schedule=schedule,
        training=training,
        effective_batch=effective_batch,
        pad_id=pad_id,
        packed=packed,
        shards=shards,
    )


def is_divided(spec: FineTuneJobSpec, world: World) -> bool:
    """Whether each rank holds a part of the model only: where all of it is trained, by several processes."""
    return spec.method.type is MethodType.FULL and world.size > 1


def _require_divisible(training: Training, accelerator: Accelerator) -> None:
    """Raise ConfigurationError for what looks at whole gradients, or keeps a state of another shape."""
    divided = "is not served for method.type Full on several processes, which divide the model among them"
    if accelerator.scaler is not None:
        raise ConfigurationError(Reason.INVALID_SPEC, f"training.precision fp16 {divided}: write bf16 or fp32")
    if training.optimizer not in _DIVISIBLE:
        named = ", ".join(_DIVISIBLE)
        raise ConfigurationError(Reason.INVALID_SPEC, f"training.optimizer {training.optimizer} {divided}: write one of {named}")


@contextmanager
def _alone() -> Generator[None]:
    """Hide LOCAL_RANK: accelerate would set up process groups and DistributedDataParallel for one process on CUDA."""
    kept = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ["LOCAL_RANK"] = kept
