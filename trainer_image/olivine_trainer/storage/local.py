"""Stores that are folders: where they lie, and compare-and-replace on a file system, which has no If-Match.

The comparison and the write happen under an flock on a lock file beside the target, so that it holds between processes of one
machine and, where the file system passes flock on (NFSv4, CephFS do), between machines.
"""

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from olivine_api import names
from olivine_api.reasons import Reason
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.failures import FIELDS, Place, user_error

LOCK_SECONDS = 10.0  # who holds it writes a few bytes: a machine that was lost may hold it until its lease ends
_PAUSE = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class LocksUnsupportedError(Exception):
    """The file system has no flock."""


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


def copy_locally(source: Path, target: Path) -> None:
    """A copy of its own, there by a rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.with_name(f".lock-{target.name}.{secrets.token_hex(4)}")
    try:
        shutil.copyfile(source, written)
        written.replace(target)
    finally:
        written.unlink(missing_ok=True)


def put_if_match_locally(target: Path, data: bytes, etag: str, *, read_etag: Callable[[], str | None]) -> bool:
    """Replace `target` by a rename where `read_etag()` still gives `etag`; False otherwise.

    Raises LocksUnsupportedError, and BlockingIOError where somebody else holds the lock for long.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".lock-{target.name}").open("ab") as lock:
        take_lock(lock.fileno())  # released when the file is closed
        if read_etag() != etag:
            return False
        written = target.parent / f".lock-{target.name}.new"
        with written.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written.replace(target)
        return True


def take_lock(file: int, *, seconds: float = LOCK_SECONDS, flock: Callable[[int, int], None] = fcntl.flock) -> None:
    """Lock a file. Raises LocksUnsupportedError, and BlockingIOError where it is held for so long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise LocksUnsupportedError(error.strerror) from None
            raise
        time.sleep(_PAUSE)
