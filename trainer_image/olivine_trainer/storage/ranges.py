"""A file of rows that is read in pieces where it lies: on disk, or in an object store."""

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.store import Store


class RangeFile(Protocol):
    """Bytes of one file, from anywhere in it."""

    @property
    def name(self) -> str:
        """The file's own name."""
        ...

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    def read(self, start: int, end: int) -> bytes:
        """From `start` up to, not including, `end`."""
        ...


@dataclass(frozen=True)
class LocalRange:
    """A file on disk."""

    path: Path

    @property
    def name(self) -> str:
        """See RangeFile."""
        return self.path.name

    @property
    def size(self) -> int:
        """See RangeFile."""
        return self.path.stat().st_size

    def read(self, start: int, end: int) -> bytes:
        """See RangeFile."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


@dataclass(frozen=True)
class RemoteRange:
    """An object of a store. It may be pickled: each process connects by itself."""

    access: Access
    """Of the object's folder."""
    key: str
    size: int
    tag: str | None
    """The content that is meant: another one is an error."""

    @property
    def name(self) -> str:
        """See RangeFile."""
        return self.key.rpartition("/")[2]

    @cached_property
    def _store(self) -> Store:
        return Store(self.access)

    def read(self, start: int, end: int) -> bytes:
        """See RangeFile. Raises the user's error where the object was changed or removed since it was listed."""
        return self._store.get_range(self.key, start, end, tag=self.tag)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_store"}


class RangeReader(io.RawIOBase):
    """A RangeFile as a file that can be sought in, for readers of formats."""

    def __init__(self, file: RangeFile) -> None:
        super().__init__()
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As every file's."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from here on; at the end of the file with less."""
        into = memoryview(buffer).cast("B")
        end = min(self._file.size, self._place + len(into))
        if end <= self._place:
            return 0
        data = self._file.read(self._place, end)
        into[: len(data)] = data
        self._place += len(data)
        return len(data)
