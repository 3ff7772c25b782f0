"""The snapshot that a worker keeps, and the files through which its supervisor reads it even after the worker's death."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from olivine_api.status import Best, CurvePoint, Progress, Snapshot, Stage, TerminationMessage, thin_curve

_WRITE_INTERVAL = 1.0  # seconds; the supervisor reads every 3
_CURVE_KEPT = 1024  # points; long runs are thinned to so many


@dataclass(frozen=True)
class WorkerFiles:
    """Where one worker leaves its snapshot and its end."""

    folder: Path
    rank: int

    @property
    def snapshot(self) -> Path:
        """The newest Snapshot, JSON."""
        return self.folder / f"snapshot-{self.rank}.json"

    @property
    def end(self) -> Path:
        """The TerminationMessage of a worker that ended in an orderly way, JSON."""
        return self.folder / f"end-{self.rank}.json"

    def read_snapshot(self) -> Snapshot | None:
        """What the worker last knew."""
        content = content_of(self.snapshot)
        return Snapshot.model_validate_json(content) if content is not None else None

    def read_end(self) -> TerminationMessage | None:
        """How the worker ended, where it could still say so."""
        content = content_of(self.end)
        return TerminationMessage.model_validate_json(content) if content is not None else None

    def write_end(self, message: TerminationMessage) -> None:
        """Say how the worker ends."""
        write_atomically(self.end, message.model_dump_json(by_alias=True, exclude_none=True))


class Board:
    """The worker's snapshot: the loop moves it, the supervisor's copy follows within a second."""

    def __init__(self, files: WorkerFiles | None, *, pod: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._written = -math.inf
        self._curve: list[CurvePoint] = []
        self.snapshot = Snapshot(pod=pod, progress=Progress(stage=Stage.STARTING, last_update_time=datetime.now(UTC)))

    @property
    def curve(self) -> list[CurvePoint]:
        """The points as kept in checkpoints: more than a snapshot holds."""
        return self._curve

    def update(self, **changes: Any) -> None:
        """Change members of the snapshot; NaN and infinities are left out of metrics, which JSON cannot say."""
        for name in ("metrics", "baseline"):
            if name in changes:
                changes[name] = finite(changes[name])
        self.snapshot = self.snapshot.model_copy(update=changes)
        self._write(force=True)

    def progress(self, **changes: Any) -> None:
        """Change members of the progress and move its time; a change of stage is written at once."""
        changed_stage = "stage" in changes and changes["stage"] != self.snapshot.progress.stage
        if changed_stage:
            changes.setdefault("stage_percent", None)
        moved = self.snapshot.progress.model_copy(update={**changes, "last_update_time": datetime.now(UTC)})
        self.snapshot = self.snapshot.model_copy(update={"progress": moved})
        self._write(force=changed_stage)

    def point(self, step: int, *, train_loss: float | None = None, eval_loss: float | None = None) -> None:
        """Add to the curve; a second point of the same step completes the first."""
        point = CurvePoint(step=step, train_loss=train_loss, eval_loss=eval_loss)
        if self._curve and self._curve[-1].step == step:
            known = {name: value for name, value in point.model_dump().items() if value is not None}
            self._curve[-1] = self._curve[-1].model_copy(update=known)
        else:
            self._curve.append(point)
        if len(self._curve) > 2 * _CURVE_KEPT:
            self._curve = thin_curve(self._curve, _CURVE_KEPT)
        self.snapshot = self.snapshot.model_copy(update={"curve": thin_curve(self._curve)})
        self._write(force=False)

    def restore_curve(self, points: list[CurvePoint]) -> None:
        """Take over the curve of an earlier attempt."""
        self._curve = list(points)
        self.update(curve=thin_curve(self._curve))

    def offer_best(self, step: int, metric: str, value: float) -> None:
        """Keep the lowest value seen."""
        best = self.snapshot.best
        if math.isfinite(value) and (best is None or value < best.value):
            self.update(best=Best(step=step, metric=metric, value=value))

    def flush(self) -> None:
        """Write now."""
        self._write(force=True)

    def _write(self, *, force: bool) -> None:
        now = self._clock()
        if self._files is None or (not force and now - self._written < _WRITE_INTERVAL):
            return
        self._written = now
        write_atomically(self._files.snapshot, self.snapshot.model_dump_json(by_alias=True, exclude_none=True))


def content_of(path: Path) -> bytes | None:
    """The file, which another thread may just remove."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by a rename: a reader sees the old or the new content, whole."""
    # Two threads may write one file: the loop, and the one that ends a worker whose peer is lost.
    written = path.with_name(f"{path.name}.{threading.get_ident()}.new")
    written.write_text(text)
    written.replace(path)


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are numbers."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
