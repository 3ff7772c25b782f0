"""Names of everything in a run's folder, `<storage.uri>/<namespace>/<name>/<uid>/`."""

import re
from dataclasses import dataclass

HEAD = "run/head.json"
SPEC = "run/spec.json"
SOURCES = "run/sources.json"
BASELINE = "run/baseline.json"
PUBLISHED = "run/published.json"
CHECKPOINTS = "checkpoints"
ARTIFACTS = "artifacts"
MANIFEST = "manifest.json"

_CHECKPOINT = re.compile(r"^step-(\d{8,})-a(\d{4,})$")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """A checkpoint's place; ordered by step, then by attempt."""

    step: int
    attempt: int

    def __str__(self) -> str:
        return f"step-{self.step:08d}-a{self.attempt:04d}"

    @property
    def folder(self) -> str:
        """Key of its folder."""
        return f"{CHECKPOINTS}/{self}"

    @classmethod
    def parse(cls, folder: str) -> "CheckpointName | None":
        """The name of a folder below checkpoints/, or None where it is something else."""
        match = _CHECKPOINT.match(folder)
        return cls(step=int(match[1]), attempt=int(match[2])) if match else None


def run_folder(namespace: str, name: str, uid: str) -> str:
    """The run's folder below the storage URI."""
    return f"{namespace}/{name}/{uid}"


def attempt_folder(attempt: int) -> str:
    """Key of an attempt's folder."""
    return f"attempts/{attempt:04d}"


def artifact_folder(digest: str) -> str:
    """Key of an artifact's folder."""
    return f"{ARTIFACTS}/{digest}"
