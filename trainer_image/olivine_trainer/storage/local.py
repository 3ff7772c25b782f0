"""Stores that are folders: where they lie, and compare-and-replace on a file system, which has no If-Match.

The comparison and the write happen under an flock on a lock file beside the target, so that it holds between processes of one
machine and, where the file system passes flock on (NFSv4, CephFS do), between machines.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from olivine_api import names
from olivine_api.reasons import Reason
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.failures import FIELDS, Place, user_error


def local_folder(access: Access) -> Path | None:
    """The folder of a file:// or pvc:// address, None for other schemes; raises the role's user error for a claim that is not mounted."""
    scheme, _, rest = access.uri.partition("://")
    if scheme == "file":
        return Path(rest)
    if scheme != "pvc":
        return None
    claim, _, path = rest.partition("/")
    mounted = Path(names.CLAIMS_DIR) / claim
    if not mounted.is_dir():
        field = FIELDS[access.role]
        raise user_error(
            Place(access.role, access.uri, None),
            Reason.STORAGE_NOT_FOUND,
            f"{field}.uri is {access.uri!r}, but no PersistentVolumeClaim {claim!r} is mounted in this pod at {mounted}:"
            f" create the claim in the job's namespace, or correct {field}.uri",
        )
    return mounted / path


def put_if_match_locally(target: Path, data: bytes, etag: str, *, read_etag: Callable[[], str | None]) -> bool:
    """Replace `target` by a rename where `read_etag()` still gives `etag`; False otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".lock-{target.name}").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        if read_etag() != etag:
            return False
        written = target.parent / f".lock-{target.name}.new"
        with written.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written.replace(target)
        return True
