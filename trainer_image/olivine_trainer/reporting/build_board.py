"""The snapshot that a builder keeps, and the files through which PID 1 reads it even after the builder's death."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from olivine_api.bundle_build import BuildSnapshot, BuildStage, BuildTermination
from olivine_trainer.reporting.board import content_of, write_atomically


@dataclass(frozen=True)
class BuildFiles:
    """Where a builder leaves its snapshot and its end."""

    folder: Path

    def read_snapshot(self) -> BuildSnapshot | None:
        """What it last knew."""
        content = content_of(self.folder / "snapshot.json")
        return BuildSnapshot.model_validate_json(content) if content is not None else None

    def read_end(self) -> BuildTermination | None:
        """How it ended, where it could still say so."""
        content = content_of(self.folder / "end.json")
        return BuildTermination.model_validate_json(content) if content is not None else None

    def write_snapshot(self, snapshot: BuildSnapshot) -> None:
        """Say what is known."""
        write_atomically(self.folder / "snapshot.json", snapshot.model_dump_json(by_alias=True, exclude_none=True))

    def write_end(self, end: BuildTermination) -> None:
        """Say how it ends."""
        write_atomically(self.folder / "end.json", end.model_dump_json(by_alias=True, exclude_none=True))


class BuildBoard:
    """The builder's snapshot; each change is written at once, since they are few."""

    def __init__(self, files: BuildFiles, sequence: int, total: int) -> None:
        self._files = files
        self.snapshot = BuildSnapshot(sequence=sequence, stage=BuildStage.STARTING, total=total)
        self.update()

    def update(self, **changes: Any) -> None:
        """Change members of the snapshot."""
        self.snapshot = self.snapshot.model_copy(update={**changes, "last_update_time": datetime.now(UTC)})
        self._files.write_snapshot(self.snapshot)
