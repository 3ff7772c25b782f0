"""Snapshots: what a trainer may tell, and how it becomes status."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from olivine_api.status import FineTuneJobStatus, Progress, Resolved, Snapshot, Stage, thin_curve

# Beyond it JSON numbers lose digits, and the API server refuses the object.
_LARGEST_INTEGER = 2**53
_CLOCK_SKEW = timedelta(minutes=5)


class UnboundedNumberError(ValueError):
    """A number that no object may carry."""


def refuse_unbounded(value: Any, path: str = "") -> None:
    """Raises UnboundedNumberError where a JSON value holds a number that is not finite or too large."""
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_unbounded(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_unbounded(item, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UnboundedNumberError(f"{path} is not a finite number")
    elif isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        raise UnboundedNumberError(f"{path} is too large a number")


def bounded(snapshot: Snapshot, now: datetime) -> Snapshot:
    """The snapshot with times that are no news from the future nor from a clock that is far behind."""
    told = snapshot.progress.last_update_time
    seen = _within(told, now - _CLOCK_SKEW, now) if told is not None else now
    checkpoint = snapshot.checkpoint
    if checkpoint is not None:
        checkpoint = checkpoint.model_copy(update={"saved_at": min(_aware(checkpoint.saved_at), now)})
    progress = snapshot.progress.model_copy(update={"last_update_time": seen.replace(microsecond=0)})
    return snapshot.model_copy(update={"progress": progress, "checkpoint": checkpoint})


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _within(time: datetime, low: datetime, high: datetime) -> datetime:
    return max(low, min(_aware(time), high))


def merge(status: FineTuneJobStatus, snapshot: Snapshot, *, final: bool = False) -> FineTuneJobStatus:
    """The status with a snapshot's news. What is older than the status, or of a superseded attempt, changes nothing."""
    if snapshot.attempt == 0:
        # A pod that has no attempt yet knows nothing but that it lives.
        return status if _older(snapshot.progress, status) else status.model_copy(update={"progress": _starting(snapshot, status)})
    if snapshot.attempt < status.attempt or (
        not final and snapshot.attempt == status.attempt and _older(snapshot.progress, status)
    ):
        return status
    return status.model_copy(
        update={
            # Until the model is loaded an attempt does not know how far it will go on from.
            "progress": snapshot.progress if snapshot.progress.total_steps is not None else _starting(snapshot, status),
            "attempt": snapshot.attempt,
            # A young attempt has not measured yet what an earlier one did.
            "metrics": _readable(snapshot.metrics) or status.metrics,
            "baseline": _readable(snapshot.baseline) or status.baseline,
            "best": snapshot.best or status.best,
            "curve": thin_curve(snapshot.curve) or status.curve,
            "resolved": _resolved(snapshot, status),
            # Once the artifact is there, its checkpoints may be gone.
            "checkpoint": snapshot.checkpoint or (None if snapshot.artifacts else status.checkpoint),
            "lost_steps": max(snapshot.lost_steps, status.lost_steps),
            "estimate": snapshot.estimate or status.estimate,
            "utilization": snapshot.utilization or status.utilization,
            "peak_memory_bytes": max(snapshot.peak_memory_bytes or 0, status.peak_memory_bytes or 0) or None,
            "artifacts": snapshot.artifacts or status.artifacts,
            "storage_uri": snapshot.storage_uri or status.storage_uri,
        }
    )


def _resolved(snapshot: Snapshot, status: FineTuneJobStatus) -> Resolved | None:
    """What the trainer found, beside the image, which only the operator knows."""
    if not snapshot.resolved.to_json_dict():
        return status.resolved
    return snapshot.resolved.model_copy(update={"image": status.resolved.image if status.resolved is not None else None})


def _readable(metrics: dict[str, float]) -> dict[str, float]:
    """Six significant digits: what a column can show; the run's record in storage has them all."""
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}


def _older(progress: Progress, status: FineTuneJobStatus) -> bool:
    known = status.progress.last_update_time if status.progress is not None else None
    return known is not None and (progress.last_update_time is None or _aware(progress.last_update_time) < known)


def _starting(snapshot: Snapshot, status: FineTuneJobStatus) -> Progress:
    """A new pod's stage beside the steps that are done already."""
    if status.progress is None:
        return snapshot.progress
    update = {"stage": snapshot.progress.stage, "last_update_time": snapshot.progress.last_update_time, "eta_seconds": None}
    return status.progress.model_copy(update={**update, "tokens_per_second": None, "stage_percent": None})


def evaluated(status: FineTuneJobStatus) -> tuple[str, bool] | None:
    """What the evaluation showed, as a sentence, and whether the tuned model is measured too; None before the base is."""
    if not status.baseline:
        return None
    done = bool(status.artifacts) or (status.progress is not None and status.progress.stage is Stage.PUBLISHING)
    shared = [name for name in _by_interest(status.baseline) if name in status.metrics]
    if done and shared:
        return ", ".join(
            f"{name} {_short(status.baseline[name])} (base) -> {_short(status.metrics[name])} (tuned)" for name in shared
        ), True
    return ", ".join(f"{name} {_short(value)} (base)" for name, value in _by_interest(status.baseline).items()), False


def _by_interest(metrics: dict[str, float]) -> dict[str, float]:
    """Accuracy first: it is what most people ask for."""
    return dict(sorted(metrics.items(), key=lambda item: (item[0] != "accuracy", item[0])))


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.3g}"
