"""Sets of files that are fetched once: on a volume that pods share, or on the pod's own, so that a restart downloads nothing.

Each set lies in a folder of its digest, under names of what it was fetched from. A set is made under a temporary name and renamed,
so that it is whole or not there; it is verified, file by file, each time it is read. Whoever renames first wins: nobody needs a
lock for that. The lock only spares pods that start together the same download.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olivine_trainer.digests import folder_digest, sha256_file
from olivine_trainer.errors import StorageUnavailableError

_LOGGER = logging.getLogger("olivine.storage")

_FORMAT = "v1"
_TURN_SECONDS = 900  # then a pod fetches for itself: the holder may hang
_POLL_SECONDS = 0.5
_STALE_SECONDS = 24 * 3600  # remains of pods that were killed
# A volume that is full, fails, or may not be written.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EIO)


@dataclass(frozen=True)
class CachedFiles:
    """A set of files on this machine, verified."""

    folder: Path
    files: Mapping[str, str]
    """sha256 (hex) by path."""
    sizes: Mapping[str, int]
    """Bytes by path."""
    about: Mapping[str, Any]
    """What was noted of the source when they were fetched."""

    @property
    def digest(self) -> str:
        """sha256 over the sorted (path, sha256)."""
        return folder_digest(self.files)

    @property
    def bytes(self) -> int:
        """All files together."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class FileCache:
    """A folder of sets of files."""

    root: Path
    fallback: "FileCache | None" = None
    """Where to go where this one is full, or may not be written."""
    turn_seconds: float = field(default=_TURN_SECONDS)

    def find(self, state: str) -> CachedFiles | None:
        """The set that was fetched from `state`, where it is here and whole; a damaged one is removed and told."""
        try:
            named = json.loads(self._state(state).read_bytes())
            digest, about = str(named["digest"]), dict(named["about"])
            found = self._verified(digest, about)
        except FileNotFoundError:
            found = None
        except _DamagedError as error:
            _LOGGER.warning(f"files in the cache at {self.root} are fetched anew: {error}")
            found = None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOGGER.warning(f"the cache at {self.root} cannot be read ({error}): the files are fetched")
            found = None
        if found is None and self.fallback is not None:
            return self.fallback.find(state)
        return found

    def fill(self, state: str, download: Callable[[Path], Mapping[str, Any]], *, needs: int) -> CachedFiles:
        """Fetch a set of `needs` bytes by `download`, which writes into a folder and returns what is to be noted of the source.

        Raises what `download` raises, and StorageUnavailableError where no cache can be written.
        """
        try:
            (self.root / _FORMAT).mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.root).free
            if free < needs:
                raise OSError(errno.ENOSPC, f"it has {free} bytes left, {needs} are needed")
            with self._turn(state) as waited:
                found = self.find(state) if waited else None
                return found or self._make(state, download)
        except OSError as error:
            if self.fallback is None:
                if error.errno not in _UNWRITABLE:
                    raise
                raise StorageUnavailableError(f"files that were fetched cannot be kept at {self.root}: {error}") from error
            _LOGGER.warning(f"the cache at {self.root} cannot be written ({error.strerror}): this pod fetches for itself alone")
            return self.fallback.fill(state, download, needs=needs)

    def note(self, name: str, value: str) -> None:
        """Remember what a name stood for; best effort."""
        with contextlib.suppress(OSError):
            self._write(self._name(name), json.dumps({"name": name, "value": value}).encode())

    def noted(self, name: str) -> str | None:
        """What `name` stood for when it was last noted."""
        try:
            return str(json.loads(self._name(name).read_bytes())["value"])
        except (OSError, ValueError, KeyError, TypeError):
            return self.fallback.noted(name) if self.fallback is not None else None

    def _make(self, state: str, download: Callable[[Path], Mapping[str, Any]]) -> CachedFiles:
        staging = self._new_staging()
        try:
            about = dict(download(staging / "files"))
            paths = {path.relative_to(staging / "files").as_posix(): path for path in _files_in(staging / "files")}
            files = {name: sha256_file(path) for name, path in paths.items()}
            sizes = {name: path.stat().st_size for name, path in paths.items()}
            digest = folder_digest(files)
            described = {"digest": digest, "files": files, "sizes": sizes}
            (staging / "manifest.json").write_text(json.dumps(described, indent=1))
            self._adopt(staging, digest)
            self._write(self._state(state), json.dumps({"state": state, "digest": digest, "about": about}, indent=1).encode())
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _LOGGER.info("%d files (%d bytes) are fetched into %s", len(files), sum(sizes.values()), self.root)
        return CachedFiles(folder=self._content(digest) / "files", files=files, sizes=sizes, about=about)

    def _adopt(self, staging: Path, digest: str) -> None:
        """The one move that makes a set exist; another pod's equal set is as good, unless it is damaged."""
        final = self._content(digest)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            staging.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            try:
                self._verified(digest, {})
            except (_DamagedError, FileNotFoundError):
                self._discard(final)
                staging.rename(final)

    def _verified(self, digest: str, about: Mapping[str, Any]) -> CachedFiles:
        """Raises FileNotFoundError or _DamagedError; what is damaged is gone then."""
        place = self._content(digest)
        try:
            described = json.loads((place / "manifest.json").read_bytes())
            files = {str(name): str(sha256) for name, sha256 in described["files"].items()}
            sizes = {str(name): int(size) for name, size in described["sizes"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._discard(place)
            raise _DamagedError(f"its manifest is unreadable ({error})") from error
        fault = "its manifest contradicts itself" if folder_digest(files) != digest else None
        # All sizes first: a cut file is told without reading gigabytes.
        fault = fault or next((f"{name} is missing or cut" for name in sizes if _size(place / "files" / name) != sizes[name]), None)
        fault = fault or next(
            (f"{name} is damaged (sha256 differs)" for name in files if sha256_file(place / "files" / name) != files[name]), None
        )
        if fault is not None:
            self._discard(place)
            raise _DamagedError(fault)
        return CachedFiles(folder=place / "files", files=files, sizes=sizes, about=about)

    def _discard(self, place: Path) -> None:
        """Out of the way in one move; who reads it keeps its open files."""
        gone = self.root / _FORMAT / "staging" / f"discarded-{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):  # a volume that may only be read: its set stays, and is not used
            gone.parent.mkdir(parents=True, exist_ok=True)
            place.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    @contextlib.contextmanager
    def _turn(self, state: str) -> Generator[bool]:
        """One pod at a time fetches `state`; yields whether it had to be waited for. A dead pod's lock is released by the kernel."""
        place = self.root / _FORMAT / "locks" / _hashed(state)
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("ab") as lock:
            deadline = time.monotonic() + self.turn_seconds
            waited = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not waited:
                        _LOGGER.info("another pod fetches the same files: this one waits")
                    waited = True
                    if time.monotonic() > deadline:
                        _LOGGER.warning(
                            f"another pod has been fetching the same files for {self.turn_seconds:g} s: this one fetches too"
                        )
                        break
                    time.sleep(_POLL_SECONDS)
                except OSError as error:  # a file system without locks
                    _LOGGER.warning(
                        f"{self.root} takes no locks ({error.strerror}): pods that start together each fetch for themselves"
                    )
                    break
                else:
                    break
            yield waited

    def _new_staging(self) -> Path:
        folder = self.root / _FORMAT / "staging"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        staging = folder / secrets.token_hex(8)
        (staging / "files").mkdir(parents=True)
        return staging

    def _write(self, place: Path, data: bytes) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
        try:
            new.write_bytes(data)
            new.replace(place)
        finally:
            new.unlink(missing_ok=True)

    def _content(self, digest: str) -> Path:
        return self.root / _FORMAT / "contents" / digest

    def _state(self, state: str) -> Path:
        return self.root / _FORMAT / "states" / f"{_hashed(state)}.json"

    def _name(self, name: str) -> Path:
        return self.root / _FORMAT / "names" / f"{_hashed(name)}.json"


class _DamagedError(Exception):
    """A set is not what its manifest says."""


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _files_in(folder: Path) -> list[Path]:
    return sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
