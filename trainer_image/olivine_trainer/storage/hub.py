"""A repository of a Hugging Face hub, read at one commit.

Raises TrainerErrors only: the user's for a repository, revision or token that cannot be used, StorageUnavailableError after the
last retry.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from olivine_trainer.digests import sha256_file
from olivine_trainer.errors import StorageUnavailableError
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.failures import FIELDS, OF_MODELS, user_error
from olivine_trainer.storage.hub_client import SILENCE_SECONDS, HubClient
from olivine_trainer.storage.hub_failures import Asking, EntryMissingError, missing
from olivine_trainer.storage.store import RETRY_DELAYS, Listing, ObjectInfo

Result = TypeVar("Result")


@dataclass(frozen=True)
class HubAddress:
    """What an hf:// URI names."""

    kind: str
    """model or dataset."""
    repository: str
    path: str

    @classmethod
    def parse(cls, uri: str, *, dataset: bool) -> "HubAddress":
        """hf://organisation/name[/path]; a dataset's may begin with hf://datasets/, as elsewhere."""
        rest = uri.removeprefix("hf://").strip("/")
        parts = (rest.removeprefix("datasets/") if dataset else rest).split("/")
        return cls(kind="dataset" if dataset else "model", repository="/".join(parts[:2]), path="/".join(parts[2:]))


class HubRepository:
    """The folder of a repository that an hf:// URI names, at the commit that its revision names now."""

    def __init__(
        self,
        access: Access,
        *,
        revision: str | None,
        cache: Path,
        offline: bool,
        keeps: bool = False,
        delays: tuple[float, ...] = RETRY_DELAYS,
        sleep: Callable[[float], None] = time.sleep,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        """`silence`: seconds without a byte after which a request is tried again. `cache`: the folder of the hub's own client; `keeps`: it is somebody's, so that nothing is removed from it."""
        self.uri = access.uri.rstrip("/")
        self._hub = HubClient(access, offline=offline, delays=delays, sleep=sleep, silence=silence)
        self._endpoint, self._token, self.place = self._hub.endpoint, self._hub.token, self._hub.place
        self._address = HubAddress.parse(access.uri, dataset=access.role not in OF_MODELS)
        self.asked = revision or "main"
        self._cache = cache
        self._offline = offline
        self._keeps = keeps

    @property
    def local_folder(self) -> Path | None:
        """None: it is always fetched."""
        return None

    @property
    def repository(self) -> str:
        """Which one, without revision and folder: what a commit belongs to."""
        return f"{self._endpoint} {self._address.kind} {self._address.repository}"

    @property
    def revision(self) -> str | None:
        """The commit that is read."""
        return self.commit

    @cached_property
    def commit(self) -> str:
        """The commit that is read, asked for once."""
        if self._offline:
            return self._snapshot.name
        info = self._tried(lambda api: api.repo_info(self._address.repository, revision=self.asked, repo_type=self._address.kind))
        if not info.sha:
            raise StorageUnavailableError(f"{self.place} tells no commit of revision {self.asked!r}")
        return str(info.sha)

    @property
    def frozen_state(self) -> str | None:
        """A commit never changes."""
        return f"{self.repository}@{self.commit}/{self._address.path}"

    @property
    def _asking(self) -> Asking:
        address = self._address
        return Asking(self.place, self.uri, self._endpoint, address.kind, address.repository, self.asked, self._token is not None)

    def at(self, commit: str) -> "HubRepository":
        """The same folder at a commit that is known already: nothing is asked."""
        child = object.__new__(HubRepository)
        child.__dict__.update(self.__dict__)
        child.__dict__["commit"] = commit
        return child

    def sub(self, folder: str) -> "HubRepository":
        """The folder below this one."""
        child = object.__new__(HubRepository)
        child.__dict__.update(self.__dict__)
        child.__dict__["_files"] = [
            replace(item, key=item.key.removeprefix(f"{folder}/")) for item in self._files if item.key.startswith(f"{folder}/")
        ]
        child.uri = f"{self.uri}/{folder}"
        child._address = replace(self._address, path=f"{self._address.path}/{folder}".strip("/"))
        return child

    def grant(self) -> None:
        """Nothing to do: a token is let in or it is not, and it does not rotate within a pod."""

    def list(self) -> list[ObjectInfo]:
        """Every file below this folder, sorted by key."""
        return self._files

    def list_here(self) -> Listing:
        """The files of this very folder, and the names of the folders in it."""
        here = [item for item in self._files if "/" not in item.key]
        return Listing(objects=here, folders=sorted({item.key.partition("/")[0] for item in self._files if "/" in item.key}))

    def get_to_file(self, key: str, target: Path) -> bool:
        """Write one file, checked against the digest that the hub gives; False where there is none."""
        from huggingface_hub import hf_hub_download  # noqa: PLC0415  (half a second, for this scheme alone)

        known = {item.key: item for item in self._files}
        if key not in known:
            return False
        path = f"{self._address.path}/{key}".strip("/")

        sha256 = known[key].tag

        def download(_: Any) -> None:
            found = Path(
                hf_hub_download(
                    self._address.repository,
                    path,
                    repo_type=self._address.kind,
                    revision=self.commit,
                    cache_dir=self._cache,
                    endpoint=self._endpoint,
                    token=self._token or False,
                    local_files_only=self._offline,
                )
            )
            self._take(found.resolve(), target)
            if sha256 is not None and sha256_file(target) != sha256:
                target.unlink()
                self._forget(found)
                raise OSError(f"{path} is not what the hub says it is (sha256 differs)")

        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._tried(download)
        except EntryMissingError:  # listed, and not given out
            return False
        return True

    def _forget(self, found: Path) -> None:
        """A damaged file, so that the client fetches it anew."""
        if not self._keeps:
            found.resolve().unlink(missing_ok=True)
            found.unlink(missing_ok=True)

    def _take(self, blob: Path, target: Path) -> None:
        """Out of the client's cache without a second copy, where both lie on one file system."""
        target.unlink(missing_ok=True)
        if self._keeps:
            shutil.copyfile(blob, target)
            return
        try:
            os.link(blob, target)
        except OSError:  # another file system
            shutil.copyfile(blob, target)
            blob.unlink()

    @cached_property
    def _files(self) -> "list[ObjectInfo]":
        if self._offline:
            root = self._snapshot / self._address.path
            found = [path for path in root.rglob("*") if path.is_file()]
            return sorted(
                (ObjectInfo(path.relative_to(root).as_posix(), path.stat().st_size) for path in found), key=lambda item: item.key
            )
        prefix = f"{self._address.path}/" if self._address.path else ""
        try:
            entries = self._tried(self._list_tree)
        except EntryMissingError:
            return []
        files = [entry for entry in entries if hasattr(entry, "size")]
        return sorted(
            (
                ObjectInfo(entry.path.removeprefix(prefix), entry.size, entry.lfs.sha256 if entry.lfs is not None else None)
                for entry in files
            ),
            key=lambda item: item.key,
        )

    def _list_tree(self, api: Any) -> "list[Any]":
        return list(
            api.list_repo_tree(
                self._address.repository,
                self._address.path or None,
                recursive=True,
                revision=self.commit,
                repo_type=self._address.kind,
            )
        )

    @cached_property
    def _snapshot(self) -> Path:
        """The folder of the revision in the client's cache, for those who may not ask the hub."""
        from huggingface_hub import snapshot_download  # noqa: PLC0415
        from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

        try:
            return Path(
                snapshot_download(
                    self._address.repository,
                    repo_type=self._address.kind,
                    revision=self.asked,
                    cache_dir=self._cache,
                    local_files_only=True,
                )
            )
        except LocalEntryNotFoundError:
            field = FIELDS[self.place.role]
            raise user_error(
                self.place,
                missing(self.place),
                f"{field}.uri {self.uri} at revision {self.asked!r} is not in the hub's cache at {self._cache}, and HF_HUB_OFFLINE"
                " forbids to ask the hub: fill the cache that HF_HUB_CACHE names, or remove HF_HUB_OFFLINE from pods.env",
            ) from None

    def _tried(self, request: Callable[[Any], Result]) -> Result:
        return self._hub.tried(request, self._asking)
