"""Files between PID 1 and its workers."""

from pathlib import Path


def job_file(folder: Path) -> Path:
    """The job that the workers of this pod train."""
    return folder / "job.json"
