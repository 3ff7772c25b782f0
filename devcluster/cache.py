"""A cache of built folders, each named by a digest of what it is built from.

A folder appears whole or not at all (built aside, then renamed), and two builders of the same thing wait for one another.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from devcluster.console import say
from devcluster.locks import exclusive
from devcluster.paths import cache_root


def digest(parts: Mapping[str, bytes]) -> str:
    """A digest of named contents: the order they are given in does not count, their names and borders do."""
    total = hashlib.sha256()
    for name in sorted(parts):
        total.update(f"{len(name)}:{name}:{len(parts[name])}:".encode())
        total.update(parts[name])
    return total.hexdigest()


def sources(folder: Path, *patterns: str) -> dict[str, bytes]:
    """The contents of the files under a folder that match one of the patterns, by relative path."""
    files = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@dataclass(frozen=True)
class Recipe:
    """Something that is built once: `make(folder, log)` fills the folder from `parts` alone."""

    name: str
    parts: Mapping[str, bytes]
    make: Callable[[Path, Path], None]
    takes: str = "some seconds"

    @property
    def folder(self) -> Path:
        """Where the finished thing lies."""
        return cache_root() / f"{self.name}-{digest(self.parts)[:16]}"

    def build(self) -> Path:
        """Returns the finished folder, after building it where it is not there yet."""
        if self.folder.is_dir():
            return self.folder
        root = cache_root()
        with exclusive(root / f"{self.name}.lock", f"{self.name}: somebody else is building it; waiting for them"):
            if self.folder.is_dir():
                return self.folder
            for abandoned in root.glob(f".{self.name}-*.partial"):
                shutil.rmtree(abandoned)
            partial = root / f".{self.name}-{os.getpid()}.partial"
            partial.mkdir()
            log = root / "log" / f"{self.name}.log"
            log.parent.mkdir(exist_ok=True)
            log.unlink(missing_ok=True)
            say(f"{self.name}: building, {self.takes} (log: {log})")
            began = time.monotonic()
            try:
                self.make(partial, log)
            except BaseException:
                shutil.rmtree(partial)
                raise
            partial.rename(self.folder)
            say(f"{self.name}: built in {time.monotonic() - began:.0f} s")
        return self.folder
