"""Exclusive locks between processes, by flock on a file that may be deleted while others wait for it."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from devcluster.console import say


@contextmanager
def exclusive(path: Path, waiting: str = "") -> Generator[None]:
    """Holds the lock; prints `waiting` where somebody else has it. The kernel frees it when the process dies."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except (FileNotFoundError, FileExistsError):
            continue  # the holder before us has just removed the folder (the second: between mkdir's try and its look)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                say(waiting)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The holder before us may have deleted the file: then this lock guards nothing, and we take the new file's.
        if _same_file(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
