"""Faults that a rank brings upon itself at a drawn moment. Each is applied in the rank's own process, before it begins."""

import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivine_trainer.loop import engine, publish

_ENGINE: Any = engine.Engine
_LOSS: Any = engine.SummedLoss
Fault = Callable[[], None]


def _before_micro_batch(step: int, act: Callable[[], None]) -> None:
    """Act before the second look in optimizer step `step` (from 0): half its gradients are there."""
    real = _ENGINE.train_step

    def train_step(self: Any, examples: Any, at: int, micro: int, go_on: Callable[..., None]) -> Any:
        looks = 0

        def counted(*arguments: Any, **names: Any) -> None:
            nonlocal looks
            looks += 1
            if at == step and looks == 2:
                act()
            go_on(*arguments, **names)

        return real(self, examples, at, micro, counted)

    _ENGINE.train_step = train_step


@dataclass(frozen=True)
class SignalIn:
    """A signal in the middle of a step."""

    step: int
    number: int = signal.SIGKILL

    def __call__(self) -> None:
        _before_micro_batch(self.step, lambda: os.kill(os.getpid(), self.number))


@dataclass(frozen=True)
class Held:
    """In the middle of a step, until a file is there; another one, `reached`, tells of it."""

    step: int
    go: Path

    @property
    def reached(self) -> Path:
        return self.go.with_name("reached")

    def __call__(self) -> None:
        def hold() -> None:
            self.reached.touch()
            deadline = time.monotonic() + 60
            while not self.go.exists() and time.monotonic() < deadline:
                time.sleep(0.02)

        _before_micro_batch(self.step, hold)


@dataclass(frozen=True)
class SlowSteps:
    """Steps that take a while, so that a signal from outside finds one."""

    seconds: float

    def __call__(self) -> None:
        real = _ENGINE.train_step

        def train_step(self_: Any, *arguments: Any) -> Any:
            time.sleep(self.seconds)
            return real(self_, *arguments)

        _ENGINE.train_step = train_step


@dataclass(frozen=True)
class FarApart:
    """One rank takes longer than a collective waits, in each work that the ranks do not do in step."""

    limit: float
    loading: float = 0
    answering: float = 0
    recording: float = 0

    def __call__(self) -> None:
        from olivine_trainer.evaluation import generate
        from olivine_trainer.loop import run
        from olivine_trainer.storage.records import RunRecords
        from olivine_trainer.world import world

        world.COLLECTIVE_SECONDS = self.limit
        _delay_first(run, "load_model", self.loading)
        _delay_first(generate, "_batch_answers", self.answering)
        _delay_first(RunRecords, "record_baseline", self.recording)


def _delay_first(owner: Any, name: str, seconds: float) -> None:
    real, left = getattr(owner, name), [seconds]

    def delayed(*arguments: Any, **names: Any) -> Any:
        time.sleep(left.pop() if left else 0)
        return real(*arguments, **names)

    setattr(owner, name, delayed)


@dataclass(frozen=True)
class NoRoomFor:
    """Memory that suffices for fewer training rows at a time, from a forward pass on."""

    rows: int
    calls: int = 0
    """Forward passes that still go well."""
    on_host: bool = False
    """The host's allocator refuses, truly; else the error is a GPU's, by torch's own class and text."""

    def __call__(self) -> None:
        import torch

        real = _LOSS.forward
        seen = 0

        def forward(self_: Any, batch: Any) -> Any:
            nonlocal seen
            seen += self_.training
            if self_.training and seen > self.calls and batch.ids.shape[0] >= self.rows:
                if self.on_host:
                    allocate_too_much()
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"
                )
            return real(self_, batch)

        _LOSS.forward = forward


@dataclass(frozen=True)
class NoteEvaluatedRows:
    """The most rows that each evaluation computed at once, appended to a file."""

    path: Path
    fault: Fault

    def __call__(self) -> None:
        from olivine_trainer.evaluation import evaluate

        self.fault()
        real = evaluate.mean_loss

        def noted(*arguments: Any, batch_size: int, **names: Any) -> float:
            with self.path.open("a") as file:
                file.write(f"{batch_size}\n")
            return real(*arguments, batch_size=batch_size, **names)

        evaluate.mean_loss = noted


@dataclass(frozen=True)
class NoRoomToMove:
    """Memory runs out where nothing can be made smaller: in the optimizer's own step."""

    def __call__(self) -> None:
        _ENGINE._move = lambda *_: allocate_too_much()


def allocate_too_much() -> None:
    """Ask for more than the process may have."""
    import torch

    kept = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + (64 << 20), kept[1]))
    try:
        torch.zeros(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, kept)


def _address_space() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            return int(line.split()[1]) << 10
    raise AssertionError


@dataclass(frozen=True)
class LingerAfterPublishing:
    """Rank 0 has published, and goes on only when a file is there; it leaves another one while it waits."""

    folder: Path

    @property
    def published(self) -> Path:
        return self.folder / "published"

    @property
    def go(self) -> Path:
        return self.folder / "go"

    def __call__(self) -> None:
        real = publish.prune_checkpoints

        def prune(*arguments: Any) -> Any:
            self.published.touch()
            deadline = time.monotonic() + 60
            while not self.go.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            return real(*arguments)

        publish.prune_checkpoints = prune
