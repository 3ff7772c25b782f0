"""Files between PID 1 and its workers."""

import shutil
from pathlib import Path

from olivine_api.status import Overrides


def job_file(folder: Path) -> Path:
    """The job that the workers of this pod train."""
    return folder / "job.json"


def sweep(folder: Path) -> None:
    """Remove what the workers before left, but for their snapshots: until there are new ones, those are the newest."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith("end-"):
            path.unlink()


def write_micro_batch(folder: Path, overrides: Overrides | None) -> None:
    """Tell the workers how many rows to compute at once at most, where the operator says so."""
    path = _overrides_file(folder)
    if overrides is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(overrides.model_dump_json(by_alias=True))


def read_micro_batch(folder: Path) -> int | None:
    """What `write_micro_batch` told."""
    path = _overrides_file(folder)
    return Overrides.model_validate_json(path.read_bytes()).batch_size if path.exists() else None


def _overrides_file(folder: Path) -> Path:
    return folder / "overrides.json"
