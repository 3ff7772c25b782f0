"""Checkpoints of a run: saved whole or not at all, found newest first, pruned by the owner of the head."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from olivine_api.status import CheckpointStatus
from olivine_trainer.storage.head import Attempt, require_head
from olivine_trainer.storage.layout import CHECKPOINTS, MANIFEST, CheckpointName
from olivine_trainer.storage.manifest import DamagedFolderError, describe, download_verified, upload_files, write_manifest
from olivine_trainer.storage.store import Store


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that could not be used, and why."""

    name: CheckpointName
    why: str


@dataclass(frozen=True)
class Restored:
    """A verified checkpoint on disk (None where the run has none), and what was skipped on the way to it."""

    folder: Path | None
    status: CheckpointStatus | None
    skipped: tuple[Skipped, ...]


def save_checkpoint(run: Store, attempt: Attempt, step: int, folder: Path, about: dict[str, Any]) -> CheckpointStatus:
    """Upload `folder` as the checkpoint of `step`. Raises SupersededError, before the manifest, where the head has moved."""
    name = CheckpointName(step=step, attempt=attempt.number)
    saved_at = datetime.now(UTC)
    manifest = describe(folder, {"step": step, "attempt": attempt.number, "savedAt": saved_at.isoformat(), **about})
    upload_files(run, name.folder, folder, manifest, may_write=lambda: require_head(run, attempt))
    require_head(run, attempt)
    write_manifest(run, name.folder, manifest)
    return CheckpointStatus(uri=f"{run.uri}/{name.folder}", step=step, digest=manifest.digest, saved_at=saved_at)


def restore_newest(run: Store, scratch: Path, *, spec_digest: str) -> Restored:
    """Download the newest checkpoint that verifies; those that do not are skipped and named."""
    skipped: list[Skipped] = []
    for name in sorted(_names(run), reverse=True):
        folder = scratch / str(name)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            manifest = download_verified(run, name.folder, folder)
            if manifest.about.get("specDigest") != spec_digest:
                raise DamagedFolderError("it belongs to another specification")
            saved_at = datetime.fromisoformat(str(manifest.about["savedAt"]))
        except DamagedFolderError as error:
            skipped.append(Skipped(name=name, why=str(error)))
            shutil.rmtree(folder, ignore_errors=True)
            continue
        status = CheckpointStatus(uri=f"{run.uri}/{name.folder}", step=name.step, digest=manifest.digest, saved_at=saved_at)
        return Restored(folder=folder, status=status, skipped=tuple(skipped))
    return Restored(folder=None, status=None, skipped=tuple(skipped))


def prune_checkpoints(run: Store, attempt: Attempt, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and the remains of incomplete ones of earlier attempts.

    The newest attempt's come first, whatever their steps: an earlier one's that is further on was damaged, or it would have been
    taken up.

    Raises SupersededError where the head has moved: only its owner deletes.
    """
    keys = [item.key for item in run.list(CHECKPOINTS)]
    by_name: dict[CheckpointName, list[str]] = {}
    for key in keys:
        if (name := CheckpointName.parse(key.split("/")[1])) is not None:
            by_name.setdefault(name, []).append(key)
    whole = (name for name, parts in by_name.items() if f"{name.folder}/{MANIFEST}" in parts)
    complete = sorted(whole, key=lambda name: (name.attempt, name.step), reverse=True)
    incomplete = [name for name in by_name if name not in complete and name.attempt < attempt.number]
    doomed = [*complete[keep:], *incomplete]
    if not doomed:
        return
    require_head(run, attempt)
    for name in doomed:
        # The manifest goes first: a checkpoint that is half deleted must not look whole.
        run.delete(sorted(by_name[name], key=lambda key: not key.endswith(f"/{MANIFEST}")))


def _names(run: Store) -> set[CheckpointName]:
    """Every checkpoint folder, complete or not: one without a manifest is worth naming too."""
    found = {CheckpointName.parse(item.key.split("/")[1]) for item in run.list(CHECKPOINTS)}
    return {name for name in found if name is not None}
