"""A folder in an object store, or on disk: reads, unconditional and conditional writes, listing, deletion.

Raises TrainerErrors only: the user's for a missing bucket or denied access, StorageUnavailableError after the last retry.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import obstore
import obstore.exceptions as obs
from obstore.store import LocalStore

from olivine_api.reasons import Reason
from olivine_trainer.errors import TrainerError
from olivine_trainer.storage.clients import RemoteStore, connect, has_generations
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.failures import FIELDS, Place, explain, is_missing_bucket, is_retryable, unavailable, user_error
from olivine_trainer.storage.local import LocksUnsupportedError, copy_locally, local_folder, put_if_match_locally

Result = TypeVar("Result")

_NOT_IMPLEMENTED = ("status: 501", "501 Not Implemented", "NotImplemented")

# Seconds between the tries of one request: a store may be away for half a minute. Other ranks wait at most 5 minutes for a word.
RETRY_DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0)
PATIENCE_SECONDS = 150  # no further try after that, however long each of them takes
_HURRIED_TRIES = 3  # of one request once the pod is to go: the grace must suffice for a whole checkpoint
COPY_LIMIT = 5 << 30  # bytes that S3 copies in one request; what is larger goes through this machine
PIECE = 8 << 20  # bytes of one request of a download: what is large must not start over from its first byte
# One request with its body (uploads go in pieces, too): a store that is silent for longer is tried again.
_REQUEST_SECONDS = 60
_HASTY_SECONDS = 5  # for what is convenient, not needed


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object; `key` is relative to the store's folder."""

    key: str
    size: int
    tag: str | None = None
    """The store's tag of this very content, where it gives one."""


@dataclass(frozen=True)
class Listing:
    """A folder's own objects, and the names of the folders in it."""

    objects: list[ObjectInfo]
    folders: list[str]


@dataclass(frozen=True)
class Fetched:
    """An object's content and the tag that a conditional write compares."""

    data: bytes
    etag: str


@dataclass
class _Mood:
    """What a store and the stores of its folders learn while they are used."""

    granted: bool = False
    """The keys were let in: see `Store.grant`."""
    hurried: Callable[[], bool] = lambda: False


class Store:
    """The folder that a URI names; keys are relative to it and use '/'."""

    def __init__(
        self, access: Access, *, delays: tuple[float, ...] = RETRY_DELAYS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.uri = access.uri.rstrip("/")
        self.place = Place(access.role, access.uri, access.endpoint)
        self._delays = delays
        self._sleep = sleep
        self._mood = _Mood()
        self._folder: Path | None = local_folder(access)
        if self._folder is not None:
            self._store: LocalStore | RemoteStore = LocalStore()
            self._hasty = self._store
            self._root = str(self._folder).strip("/")
        else:
            self._root = access.uri.partition("://")[2].partition("/")[2].strip("/")
            try:
                self._store = connect(access, seconds=_REQUEST_SECONDS)
                self._hasty = connect(access, seconds=_HASTY_SECONDS)
            except (ValueError, obs.BaseError) as error:
                raise _unusable(self.place, error, ca=access.ca_bundle) from None

    @property
    def local_folder(self) -> Path | None:
        """The folder on disk, for file:// and pvc:// only."""
        return self._folder

    @property
    def revision(self) -> str | None:
        """None: stores have no commits."""
        return None

    @property
    def frozen_state(self) -> str | None:
        """None: what lies here may change."""
        return None

    def sub(self, folder: str) -> "Store":
        """The store of a folder below this one."""
        child = object.__new__(Store)
        child.__dict__.update(self.__dict__)
        child.uri = f"{self.uri}/{folder}"
        child._root = f"{self._root}/{folder}".strip("/")
        child._folder = self._folder / folder if self._folder is not None else None
        return child

    def once(self) -> "Store":
        """The same store with one short try: for what is convenient, not needed."""
        child = object.__new__(Store)
        child.__dict__.update(self.__dict__)
        child._delays = ()
        child._store = self._hasty
        return child

    def grant(self) -> None:
        """The keys have proved themselves: from here on a denial is no mistake of the user's (a rotated Secret)."""
        self._mood.granted = True

    def hurry_when(self, asked: Callable[[], bool]) -> None:
        """Cut retries short from the moment that `asked` says so."""
        self._mood.hurried = asked

    def get(self, key: str) -> Fetched | None:
        """The object's content, or None where there is none."""

        def read() -> Fetched | None:
            try:
                found = obstore.get(self._store, self._path(key))
                return Fetched(data=bytes(found.bytes()), etag=self._tag(found.meta))
            except FileNotFoundError as error:
                if is_missing_bucket(error):
                    raise
                return None

        return self._tried(read, f"reading {key}")

    def get_to_file(self, key: str, target: Path) -> bool:
        """Write the object to a file, in pieces that are tried one by one; False where there is none."""

        def look() -> Any:
            try:
                return obstore.head(self._store, self._path(key))
            except FileNotFoundError:
                return None

        meta = self._tried(look, f"reading {key}")
        if meta is None:
            self.get(key)  # raises where the bucket is missing: the answer to a HEAD does not tell
            return False
        size, etag = int(meta["size"]), meta["e_tag"]

        def read(start: int) -> memoryview:
            options: dict[str, Any] = {"range": (start, min(size, start + PIECE))} | ({"if_match": etag} if etag else {})
            found = obstore.get(self._store, self._path(key), options=options)  # pyright: ignore[reportArgumentType]
            return memoryview(found.bytes())

        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for start in range(0, size, PIECE):
                file.write(self._tried(lambda start=start: read(start), f"reading {key}"))
        return True

    def get_range(self, key: str, start: int, end: int, *, tag: str | None) -> bytes:
        """A piece of the object whose content has this tag. Raises the role's user error where there is another one, or none."""
        options: dict[str, Any] = {"range": (start, end)} | ({"if_match": tag} if tag and self._folder is None else {})

        def read() -> bytes:
            try:
                return bytes(obstore.get(self._store, self._path(key), options=options).bytes())  # pyright: ignore[reportArgumentType]
            except (obs.PreconditionError, FileNotFoundError) as error:
                if is_missing_bucket(error):
                    raise
                raise user_error(
                    self.place,
                    Reason.SOURCE_CHANGED,
                    f"{FIELDS[self.place.role]}.uri {self.uri}: {key} was changed or removed while it was read: put it back",
                ) from None

        return self._tried(read, f"reading {key}")

    def put(self, key: str, data: bytes | Path) -> None:
        """Write, whatever stands there."""
        self._tried(lambda: obstore.put(self._store, self._path(key), data), f"writing {key}")

    def copy(self, key: str, target: str, size: int) -> None:
        """Copy an object of this folder within the store, by the store itself where it can; `size`: its bytes. Overwrites."""

        def within() -> None:
            if self._folder is not None:  # not by a hard link, which onnx refuses to read
                copy_locally(self._folder / key, self._folder / target)
            elif size > COPY_LIMIT:
                obstore.put(self._store, self._path(target), obstore.get(self._store, self._path(key)).stream(PIECE))
            else:
                obstore.copy(self._store, self._path(key), self._path(target))

        self._tried(within, f"copying {key} to {target}")

    def put_if_absent(self, key: str, data: bytes, *, recognise: bool = True) -> bool:
        """Create the object; False where another one stands there already.

        A try whose answer was lost may have created it: content equal to our own then counts as ours, unless `recognise` is off.
        """
        tries = 0

        def create() -> bool:
            nonlocal tries
            tries += 1
            try:
                obstore.put(self._store, self._path(key), data, mode="create", use_multipart=False)
            except (obs.AlreadyExistsError, obs.PreconditionError):
                return recognise and tries > 1 and self._holds(key, data)
            except obs.BaseError as error:
                self._require_conditions(error)
                raise
            return True

        return self._tried(create, f"creating {key}")

    def put_if_match(self, key: str, data: bytes, etag: str, *, recognise: bool = True) -> bool:
        """Replace the object where its tag is still `etag`; False where somebody else was faster. `recognise` as above."""
        tries = 0

        def replace() -> bool:
            nonlocal tries
            tries += 1
            if self._folder is not None:
                try:
                    return put_if_match_locally(self._folder / key, data, etag, read_etag=lambda: self._etag(key))
                except LocksUnsupportedError:
                    raise self._without_locks() from None
            try:
                obstore.put(self._store, self._path(key), data, mode=self._condition(etag), use_multipart=False)
            except (obs.PreconditionError, FileNotFoundError) as error:
                if is_missing_bucket(error):
                    raise
                return recognise and tries > 1 and self._holds(key, data)
            except obs.BaseError as error:
                self._require_conditions(error)
                raise
            return True

        return self._tried(replace, f"replacing {key}")

    def list_here(self) -> Listing:
        """What lies in this very folder, sorted; what is deeper is not walked through."""

        def read() -> Listing:
            found = obstore.list_with_delimiter(self._store, self._root or None)
            objects = (self._info(item) for item in found["objects"])
            return Listing(
                objects=sorted((item for item in objects if not _is_internal(item.key)), key=lambda item: item.key),
                folders=sorted(self._relative(path) for path in found["common_prefixes"]),
            )

        return self._tried(read, "listing the folder")

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects below a folder, sorted by key."""

        def read() -> list[ObjectInfo]:
            # Object stores match prefixes by whole path segments here: 'a/b' finds a/b/c, not a/bc.
            path = self._path(prefix) if prefix else self._root
            found: list[ObjectInfo] = []
            for page in obstore.list(self._store, path or None):
                found.extend(self._info(item) for item in page)
            return sorted((item for item in found if not _is_internal(item.key)), key=lambda item: item.key)

        return self._tried(read, f"listing {prefix or 'the folder'}")

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already do not matter."""
        for key in keys:
            self._tried(lambda key=key: self._delete_one(key), f"deleting {key}")

    def require_conditional_writes(self, key: str, data: bytes) -> None:
        """Refuse a store that ignores If-None-Match or If-Match, by two writes of `data` that must not happen.

        `key` must exist with exactly this content: a store that fails the test is left as it was.
        """
        # The content is the same: after a lost answer it would be taken for a write of our own.
        created = self.put_if_absent(key, data, recognise=False)
        wrong = "1" if has_generations(self._store) else '"00000000000000000000000000000000"'
        if created or self.put_if_match(key, data, wrong, recognise=False):
            raise self._without_conditions("ignores")

    def _require_conditions(self, error: Exception) -> None:
        """Raise the user's error where a store answers that it does not know conditional writes."""
        if isinstance(error, obs.NotSupportedError) or any(sign in str(error) for sign in _NOT_IMPLEMENTED):
            raise self._without_conditions("refuses") from None

    def _without_conditions(self, does: str) -> TrainerError:
        return user_error(
            self.place,
            Reason.STORAGE_UNSUPPORTED,
            f"{self.place} {does} conditional writes (If-None-Match, If-Match), without which two writers could overwrite each other:"
            f" use a store that has them (AWS S3, Google Cloud Storage, Azure Blob Storage, MinIO, SeaweedFS, Ceph) in {FIELDS[self.place.role]}.uri",
        )

    def _without_locks(self) -> TrainerError:
        return user_error(
            self.place,
            Reason.STORAGE_UNSUPPORTED,
            f"{self.place} lies on a file system without locks (flock), without which two writers could overwrite each other:"
            f" mount it with locks (NFSv4 has them), or write an object store's address into {FIELDS[self.place.role]}.uri",
        )

    def _delete_one(self, key: str) -> None:
        try:
            obstore.delete(self._store, self._path(key))
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise

    def _holds(self, key: str, data: bytes) -> bool:
        found = self.get(key)
        return found is not None and found.data == data

    def _etag(self, key: str) -> str | None:
        try:
            return self._tag(obstore.head(self._store, self._path(key)))
        except FileNotFoundError:
            return None

    def _tag(self, meta: Any) -> str:
        """What a conditional write compares: the ETag, or Google's generation."""
        return str(meta["version"] if has_generations(self._store) else meta["e_tag"])

    def _condition(self, tag: str) -> Any:
        return {"version": tag} if has_generations(self._store) else {"e_tag": tag}

    def _info(self, item: Any) -> ObjectInfo:
        return ObjectInfo(key=self._relative(item["path"]), size=item["size"], tag=item.get("e_tag"))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if self._root else key

    def _relative(self, path: str) -> str:
        return path[len(self._root) + 1 :] if self._root else path

    def _tried(self, request: Callable[[], Result], doing: str) -> Result:
        """Run a request, again after each delay while another try may help."""
        begun = time.monotonic()
        for tries, delay in enumerate((*self._delays, None), start=1):
            try:
                return request()
            except (obs.InvalidPathError, ValueError) as error:
                if "path" not in str(error).lower():
                    raise
                raise _unusable(self.place, error) from None
            except (obs.BaseError, OSError) as error:
                if (told := explain(error, self.place, granted=self._mood.granted)) is not None:
                    raise told from None
                spent = (
                    delay is None
                    or time.monotonic() - begun > PATIENCE_SECONDS
                    or (tries >= _HURRIED_TRIES and self._mood.hurried())
                )
                if spent or not is_retryable(error, granted=self._mood.granted):
                    raise unavailable(error, self.place, doing) from error
                self._sleep(delay or 0)
        raise AssertionError("unreachable: the last try returns or raises")


def _unusable(place: Place, error: Exception, *, ca: str | None = None) -> TrainerError:
    """The user's error where the client refuses what it was given."""
    field = FIELDS[place.role]
    first = (str(error).splitlines() or [type(error).__name__])[0][:300]
    advice = f"correct {field}.uri or {field}.endpoint"
    if isinstance(error, obs.UnknownConfigurationKeyError):
        advice = f"remove that key from the Secret of {field}.secretRef"
    elif ca is not None:
        advice = f"CA_BUNDLE in the Secret of {field}.secretRef must hold certificates in PEM form"
    return user_error(place, Reason.INVALID_SPEC, f"{place} cannot be used: {first}; {advice}")


def _is_internal(key: str) -> bool:
    """Lock files of the local store's conditional writes."""
    return key.rpartition("/")[2].startswith(".lock-")
