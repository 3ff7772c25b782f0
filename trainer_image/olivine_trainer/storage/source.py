"""What the trainer reads from: one interface over object stores, folders and the hub, opened by the scheme of the URI."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from olivine_api import names
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.failures import Place
from olivine_trainer.storage.hub import HubRepository
from olivine_trainer.storage.hub_failures import HubUnavailableError
from olivine_trainer.storage.store import Listing, ObjectInfo, Store

_LOGGER = logging.getLogger("olivine.storage")


class Source(Protocol):
    """A folder that is read: keys are relative to it and use '/'."""

    uri: str
    place: Place

    @property
    def local_folder(self) -> Path | None:
        """The folder on disk, where it is one already."""
        ...

    @property
    def revision(self) -> str | None:
        """The hub's commit; None where a source has none."""
        ...

    @property
    def frozen_state(self) -> str | None:
        """Names this very content without a look at it; None where only a listing can tell."""
        ...

    def sub(self, folder: str) -> "Source":
        """The source of a folder below this one."""
        ...

    def list_here(self) -> Listing:
        """What lies in this very folder."""
        ...

    def list(self) -> list[ObjectInfo]:
        """Everything below this folder."""
        ...

    def get_to_file(self, key: str, target: Path) -> bool:
        """Write one file; False where there is none."""
        ...

    def grant(self) -> None:
        """The keys were let in: a later denial is the platform's."""
        ...


def open_source(
    access: Access,
    cache: FileCache,
    scratch: Path,
    environ: Mapping[str, str],
    *,
    revision: str | None = None,
    commit: str | None = None,
) -> Source:
    """The source that `access` names, a hub's repository at one commit.

    `commit`: the one that the run began with; else what `revision` names now, or named last where the hub is away and the cache
    remembers. `scratch`: where the hub's client keeps what it is at.
    """
    if access.scheme != "hf":
        return Store(access)
    own = environ.get("HF_HUB_CACHE")
    repository = HubRepository(
        access,
        revision=revision,
        cache=Path(own) if own else scratch / "hub",
        offline=hub_is_forbidden(environ),
        keeps=own is not None,
    )
    if commit is not None:
        return repository.at(commit)
    name = f"{repository.repository}@{repository.asked}"
    try:
        cache.note(name, repository.commit)
    except HubUnavailableError as error:
        known = cache.noted(name)
        if known is None:
            raise
        _LOGGER.warning(f"{error.message}; revision {repository.asked!r} is taken to be still {known}, as the cache remembers it")
        return repository.at(known)
    return repository


def hub_is_forbidden(environ: Mapping[str, str]) -> bool:
    """Whether the user's HF_HUB_OFFLINE is set."""
    return environ.get(names.ENV_HUB_OFFLINE, "").strip().lower() in ("1", "on", "yes", "true")
