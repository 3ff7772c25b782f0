"""The second place of what is finished: a prefix of a store, or a repository of a hub. Publishing the same twice changes nothing.

In a store each folder lies below the prefix, its manifest.json written last; on a hub one commit makes the whole repository what
is published, with a card. Raises TrainerErrors only, as stores and hubs do: the user's for a place that cannot be written to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivine_api.reasons import Reason
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.failures import FIELDS, Place, user_error
from olivine_trainer.storage.hub import HubAddress
from olivine_trainer.storage.hub_client import HubClient
from olivine_trainer.storage.hub_failures import Asking
from olivine_trainer.storage.layout import MANIFEST
from olivine_trainer.storage.manifest import Manifest, manifest_of, unlisted
from olivine_trainer.storage.store import Store

CARD = "README.md"
_KEPT = (".gitattributes",)  # a hub's own
_PROBE = ".olivine-may-write"


@dataclass(frozen=True)
class Part:
    """A finished folder of this machine."""

    name: str
    """Of its folder in the second place."""
    folder: Path
    manifest: Manifest

    @property
    def paths(self) -> list[str]:
        """All files but the manifest."""
        return [*sorted(self.manifest.files), *unlisted(self.folder, self.manifest)]


@dataclass(frozen=True)
class Placed:
    """Where something was published."""

    uri: str
    commit: str | None = None
    """A hub's."""


def publish_folder(
    access: Access,
    folder: Path,
    prefix: str,
    about: Mapping[str, Any],
    *,
    title: str = "",
    card: bytes | None = None,
    may_write: Callable[[], None] = lambda: None,
) -> Placed:
    """One finished folder to `<uri>/<prefix>/`, or as the whole content of a hub's repository.

    `about`: what its manifest.json tells beside its files; one that the folder has (a bundle's) is kept. `title`: of a hub's
    commit. `card`: a hub's README.md. `may_write` raises where somebody else is the writer now.
    """
    part = Part("", folder, manifest_of(folder, dict(about)))
    if access.scheme == "hf":
        return _Repository(access).publish({"": part}, card=card, title=title or prefix, may_write=may_write)
    return _to_store(Store(access).sub(prefix), part, may_write)


def publish_parts(
    access: Access, prefix: str, parts: Sequence[Part], *, card: bytes, title: str, may_write: Callable[[], None]
) -> list[Placed]:
    """Each part to `<uri>/<prefix>/<its name>/`; on a hub the first to the top of the repository, the others into folders of their names."""
    if access.scheme == "hf":
        placed = {"" if number == 0 else f"{part.name}/": part for number, part in enumerate(parts)}
        return [_Repository(access).publish(placed, card=card, title=title, may_write=may_write)]
    store = Store(access).sub(prefix)
    return [_to_store(store.sub(part.name), part, may_write) for part in parts]


def require_writable(access: Access, prefix: str, *, hub_offline: bool = False) -> None:
    """Find out before the work what would spoil its end: a hub's repository is made, in a store something small is written and removed.

    `hub_offline`: hubs must not be asked.
    """
    if access.scheme != "hf":
        store = Store(access).sub(prefix)
        store.list_here()  # some stores make a bucket for whoever writes into it
        store.put(_PROBE, b"")
        store.delete([_PROBE])
        return
    if hub_offline:
        place = Place(access.role, access.uri, access.endpoint)
        field = FIELDS[access.role]
        raise user_error(
            place,
            Reason.INVALID_SPEC,
            f"{field}.uri {access.uri} is on a hub, and HF_HUB_OFFLINE forbids to ask it: remove HF_HUB_OFFLINE from pods.env,"
            f" or write the address of a store into {field}.uri",
        )
    _Repository(access).make()


def _to_store(store: Store, part: Part, may_write: Callable[[], None]) -> Placed:
    rendered = part.manifest.render()
    known = store.get(MANIFEST)
    if known is not None and known.data == rendered:
        return Placed(store.uri)
    may_write()
    store.delete([MANIFEST])  # from here on the folder does not exist, until its new manifest does
    for path in part.paths:
        may_write()
        store.put(path, part.folder / path)
    wanted = {*part.paths, MANIFEST}
    store.delete([item.key for item in store.list() if item.key not in wanted])
    may_write()
    store.put(MANIFEST, rendered)
    return Placed(store.uri)


class _Repository:
    """A model repository that is written to."""

    def __init__(self, access: Access) -> None:
        self._hub = HubClient(access, writes=True)
        self._uri = access.uri.rstrip("/")
        self._name = HubAddress.parse(access.uri, dataset=False).repository
        place, endpoint, with_token = self._hub.place, self._hub.endpoint, self._hub.token is not None
        self._asking = Asking(place, self._uri, endpoint, "model", self._name, "main", with_token, writes=True)

    def make(self) -> None:
        """Private, where it does not exist; and whether we may write there."""

        def create(api: Any) -> None:
            if not api.repo_exists(self._name, repo_type="model"):
                api.create_repo(self._name, repo_type="model", private=True, exist_ok=True)
            self._require_write(api)

        self._hub.tried(create, self._asking, doing="making the repository")

    def publish(self, parts: Mapping[str, Part], *, card: bytes | None, title: str, may_write: Callable[[], None]) -> Placed:
        """One commit, after which the repository holds the parts by their prefixes ('' or 'onnx/'), the card, and nothing else."""
        self.make()
        files: dict[str, Path | bytes] = {}
        for prefix, part in parts.items():
            files |= {f"{prefix}{path}": part.folder / path for path in part.paths}
            files[f"{prefix}{MANIFEST}"] = part.manifest.render()
        if card is not None:
            files[CARD] = card

        def commit(api: Any) -> str:
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete  # noqa: PLC0415  (half a second)

            there = set(api.list_repo_files(self._name, repo_type="model"))
            gone = sorted(there - files.keys() - {*_KEPT, CARD})
            operations: list[Any] = [CommitOperationDelete(path) for path in gone]
            operations += [
                CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
                for path, content in sorted(files.items())
            ]
            may_write()
            made = api.create_commit(self._name, operations, commit_message=title, repo_type="model")
            return str(made.oid)

        return Placed(self._uri, self._hub.tried(commit, self._asking, doing="publishing"))

    def _require_write(self, api: Any) -> None:
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415  (half a second)

        try:
            api.auth_check(self._name, repo_type="model", write=True)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:  # mirrors that do not know the question; the repository is there
                raise
