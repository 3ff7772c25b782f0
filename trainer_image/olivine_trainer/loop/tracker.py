"""What each step tells: board, log line, metrics and events files, TensorBoard, and how far the attempt is known to have come."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from olivine_api.finetunejob import FineTuneJobSpec
from olivine_trainer.loop.claim import Claim
from olivine_trainer.loop.engine import StepResult
from olivine_trainer.loop.state import Progressed
from olivine_trainer.loop.tolerance import tolerated
from olivine_trainer.loop.usage import Meter, peak_memory_bytes
from olivine_trainer.reporting.board import Board
from olivine_trainer.reporting.logs import CONTEXT, log
from olivine_trainer.reporting.metrics_log import JsonLines
from olivine_trainer.reporting.speed import Speed
from olivine_trainer.reporting.tensorboard import TensorBoard
from olivine_trainer.storage.layout import attempt_folder
from olivine_trainer.storage.records import AttemptProgress

_PROGRESS_INTERVAL = 5.0  # seconds; what a lost pod may leave uncounted in lostSteps


@dataclass
class Tracker:
    """The outward side of one attempt's training."""

    spec: FineTuneJobSpec
    claim: Claim
    board: Board
    total_steps: int
    rows: int
    effective_batch: int
    tensorboard: TensorBoard | None
    leads: bool = True
    """Only rank 0 writes and tells; the others know the same."""
    lost_steps: int = 0
    clock: Callable[[], float] = time.monotonic
    speed: Speed = field(default_factory=Speed)
    meter: Meter = field(default_factory=Meter)
    metrics: JsonLines = field(init=False)
    events: JsonLines = field(init=False)
    _noted: float = field(default=-1e9, init=False)
    _step_seconds: float = field(default=0.0, init=False)
    _held_up_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        folder = self.claim.run.sub(attempt_folder(self.claim.attempt.number))
        self.metrics = JsonLines("metrics", folder.put)
        self.events = JsonLines("events", folder.put)

    def stepped(self, done: Progressed, result: StepResult, seconds: float, learning_rate: float) -> Progressed:
        """After an optimizer step; returns `done` with its logging window moved on."""
        self.speed = self.speed.after(result.tokens, seconds)
        self._step_seconds += seconds
        self.meter.stepped(seconds, result.input_seconds)
        CONTEXT.fields["step"] = done.step
        self.show(done)
        done = done.model_copy(update={"window_loss": done.window_loss + result.loss, "window_steps": done.window_steps + 1})
        if done.step % self.spec.training.logging_steps == 0 or done.step in (1, self.total_steps):
            done = self._log(done, result, learning_rate)
        self.note_progress(done.step, force=False)
        return done

    def held_up(self, seconds: float) -> None:
        """Training stood still for a checkpoint."""
        self._held_up_seconds += seconds

    @property
    def saving_share(self) -> float:
        """Seconds that this attempt stood still for checkpoints, over those of its steps."""
        return round(self._held_up_seconds / self._step_seconds, 4) if self._step_seconds else 0.0

    def show(self, done: Progressed) -> None:
        """Move the progress on the board."""
        self.board.progress(
            step=done.step,
            total_steps=self.total_steps,
            percent=100 * done.step // self.total_steps,
            epoch=round(done.step * self.effective_batch / self.rows, 3),
            trained_tokens=done.trained_tokens,
            tokens_per_second=self.speed.tokens_per_second,
            eta_seconds=self.speed.eta_seconds(self.total_steps - done.step),
        )

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """After an evaluation in the middle of training."""
        if not self.leads:
            return
        log("evaluated", **metrics)
        self.metrics.add(step=step, **metrics)
        if self.tensorboard is not None:
            self.tensorboard.add(step, {f"eval/{name}": value for name, value in metrics.items()})

    def note_progress(self, step: int, *, force: bool) -> None:
        """Leave in storage how far the attempt is, so that the next one can tell how much was lost."""
        now = self.clock()
        if not self.leads:
            return
        if force or now - self._noted >= _PROGRESS_INTERVAL:
            self._noted = now
            progress = AttemptProgress(step=step, lost_steps=self.lost_steps)
            with tolerated("lostSteps may be counted too low"):
                self.claim.records.record_progress(self.claim.attempt.number, progress)

    def flush(self) -> None:
        """Upload what has gathered."""
        if not self.leads:
            return
        self.metrics.flush()
        self.events.flush()
        if self.tensorboard is not None:
            folder = attempt_folder(self.claim.attempt.number)
            for path in self.tensorboard.files():
                self.claim.run.put(f"{folder}/tensorboard/{path.name}", path)

    def _log(self, done: Progressed, result: StepResult, learning_rate: float) -> Progressed:
        loss = done.window_loss / done.window_steps
        self.board.point(done.step, train_loss=loss)
        metrics = {**done.metrics, "trainLoss": loss}
        used, peak = self.meter.read(), peak_memory_bytes()
        self.board.update(metrics=metrics, peak_memory_bytes=peak, utilization=used)
        if self.leads:
            shares = {"cpuUtilization": used.cpu, "gpuUtilization": used.gpu, "inputShare": used.input}
            values = {"loss": loss, "learningRate": learning_rate, "gradNorm": result.grad_norm}
            self._tell(
                done, values, {"peakMemoryBytes": peak} | {name: share for name, share in shares.items() if share is not None}
            )
        return done.model_copy(update={"metrics": metrics, "window_loss": 0.0, "window_steps": 0})

    def _tell(self, done: Progressed, values: dict[str, float], used: dict[str, float]) -> None:
        log(
            f"step {done.step}/{self.total_steps}",
            **values,
            tokensPerSecond=self.speed.tokens_per_second,
            etaSeconds=self.speed.eta_seconds(self.total_steps - done.step),
        )
        speed = self.speed.tokens_per_second
        self.metrics.add(step=done.step, trainedTokens=done.trained_tokens, tokensPerSecond=speed, **values, **used)
        if self.tensorboard is not None:
            self.tensorboard.add(done.step, {f"train/{name}": value for name, value in {**values, **used}.items()})


def tensorboard_for(spec: FineTuneJobSpec, scratch: Path) -> TensorBoard | None:
    """TensorBoard where the specification tracks with it."""
    return TensorBoard(scratch / "tensorboard") if spec.tracking.tensorboard else None
