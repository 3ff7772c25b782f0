"""Checkpoints of a run: written down between two steps, uploaded beside those that follow."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from olivine_api.status import CheckpointStatus
from olivine_trainer.loop.run import Run
from olivine_trainer.loop.state import Progressed, RandomState, optimizer_tensors, save_state
from olivine_trainer.loop.stopping import best_weights
from olivine_trainer.loop.tolerance import tolerated
from olivine_trainer.reporting.logs import log
from olivine_trainer.storage.checkpoints import prune_checkpoints, save_checkpoint

CPU = torch.device("cpu")


def save(run: Run, done: Progressed, randomness: RandomState) -> None:
    """A checkpoint of the moment after step `done.step`: rank 0 writes it down, and uploads it beside the steps that follow.

    Returns once the one before is whole in storage.
    """
    start = time.monotonic()
    rendered = run.world.gather_bytes(randomness.render())
    optimizer = optimizer_tensors(run.engine)
    with run.engine.whole(CPU):
        _tell_newest(run, lambda: _begin_upload(run, done, rendered, optimizer))
    run.tracker.held_up(time.monotonic() - start)


def settle(run: Run) -> None:
    """Until the checkpoint that is on its way is whole; all ranks come."""
    _tell_newest(run, run.uploads.wait)


def _tell_newest(run: Run, act: Callable[[], None]) -> None:
    """Rank 0 acts; then all know the newest checkpoint that is whole."""

    def acted() -> dict[str, Any] | None:
        act()
        return run.uploads.newest.to_json_dict() if run.uploads.newest is not None else None

    newest = run.world.from_leader(acted)
    if newest is not None:
        run.board.update(checkpoint=CheckpointStatus.model_validate(newest))


def _begin_upload(run: Run, done: Progressed, randomness: Sequence[bytes], optimizer: dict[str, torch.Tensor]) -> None:
    run.uploads.wait()
    folder = run.scratch / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    done = done.model_copy(update={"curve": run.board.curve, "best": run.board.snapshot.best})
    best = best_weights(run.scratch)
    save_state(folder, run.engine, done, randomness, optimizer, best=best if best.exists() else None)
    run.uploads.begin(lambda: _upload(run, done.step, folder))


def _upload(run: Run, step: int, folder: Path) -> CheckpointStatus:
    """In the thread beside training: the checkpoint, then what gathered for the attempt's folder."""
    start = time.monotonic()
    status = save_checkpoint(run.claim.run, run.claim.attempt, step, folder, {"specDigest": run.job.spec_digest})
    shutil.rmtree(folder)
    seconds = round(time.monotonic() - start, 3)
    run.tracker.events.add(
        event="CheckpointSaved", step=step, digest=status.digest, seconds=seconds, share=run.tracker.saving_share
    )
    run.tracker.note_progress(step, force=True)
    run.tracker.flush()
    with tolerated("old checkpoints are left behind"):
        prune_checkpoints(run.claim.run, run.claim.attempt, run.job.spec.checkpoint.keep)
    log("checkpoint saved", step=step, uri=status.uri, seconds=seconds, shareOfStepTime=run.tracker.saving_share)
    return status
