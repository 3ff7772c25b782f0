"""Compare-and-replace on a file system, which has no If-Match.

The comparison and the write happen under an flock on a lock file beside the target, so that it holds between processes of one
machine and, where the file system passes flock on (NFSv4, CephFS do), between machines.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


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
