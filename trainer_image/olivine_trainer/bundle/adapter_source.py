"""One adapter's files, brought here; whatever is wrong with them is told as the adapter's rejection."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from olivine_api.exit_codes import Category
from olivine_api.names import ENV_ADAPTER_PREFIX
from olivine_api.sources import LocalObjectReference, Source, Storage
from olivine_trainer.bundle.adapter import SlotAdapter
from olivine_trainer.bundle.bottleneck_reader import CONFIG as BOTTLENECK
from olivine_trainer.bundle.bottleneck_reader import WEIGHTS as BOTTLENECK_WEIGHTS
from olivine_trainer.bundle.bottleneck_reader import read_bottleneck
from olivine_trainer.bundle.peft_reader import CONFIG as PEFT
from olivine_trainer.bundle.peft_reader import WEIGHTS as PEFT_WEIGHTS
from olivine_trainer.bundle.peft_reader import read_peft
from olivine_trainer.bundle.rejected import RejectedError
from olivine_trainer.bundle.slots import Linear
from olivine_trainer.digests import folder_digest, sha256_file
from olivine_trainer.errors import TrainerError
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.credentials import Access, access_to
from olivine_trainer.storage.layout import ARTIFACTS, MANIFEST, PUBLISHED
from olivine_trainer.storage.manifest import DamagedFolderError, parse_manifest
from olivine_trainer.storage.source import Source as OpenSource
from olivine_trainer.storage.source import open_source
from olivine_trainer.storage.store import ObjectInfo

Result = TypeVar("Result")

_NEEDED = (PEFT, PEFT_WEIGHTS, BOTTLENECK, BOTTLENECK_WEIGHTS)
_MODEL = "modelDigest"  # the publisher of a FineTuneJob's artifact writes it into the manifest
_PROMPTS = 4  # of a job's samples: each costs its time
_SHOWN = 12  # characters of a digest in a sentence


@dataclass(frozen=True, kw_only=True)
class AdapterPlace:
    """Where an adapter lies, and what is known of it before it is fetched."""

    uri: str
    endpoint: str | None = None
    credentials: int | None = None
    """The number in the names of its Secret's variables."""
    secret: str | None = None
    digest: str | None = None
    model_digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class FetchedAdapter:
    """An adapter on this machine."""

    uri: str
    folder: Path
    digest: str
    """Of its files, as its manifest has it; without one, of those that an adapter needs."""
    prompts: list[str] = field(default_factory=list[str])
    """Its job's held-back ones, where any are known."""


def read_adapter_folder(folder: Path, linears: Mapping[str, Linear]) -> SlotAdapter:
    """A peft directory, or an Olivine bottleneck adapter. Raises RejectedError."""
    if (folder / BOTTLENECK).is_file():
        return read_bottleneck(folder, linears)
    if (folder / PEFT).is_file():
        return read_peft(folder, linears)
    raise _no_adapter()


def _no_adapter() -> RejectedError:
    return RejectedError(f"it has neither {PEFT} (peft) nor {BOTTLENECK} (a bottleneck adapter of Olivine): look at its address")


class AdapterFetcher:
    """Fetches adapters with what the environment holds for each."""

    def __init__(self, storage: Storage, environ: Mapping[str, str], cache: FileCache, scratch: Path) -> None:
        self._storage = storage
        self._environ = environ
        self._cache = cache
        self._scratch = scratch

    def state(self, place: AdapterPlace) -> str | None:
        """Names what lies there now without fetching it; None where the store cannot tell. Raises RejectedError."""
        return _as_rejection(lambda: self._state(place))

    def fetch(self, name: str, place: AdapterPlace, model_digest: str) -> FetchedAdapter:
        """Raises RejectedError where it is not there, not whole, not what was published, or was trained on another base."""
        return _as_rejection(lambda: self._fetch(name, place, model_digest))

    def _state(self, place: AdapterPlace) -> str | None:
        source = self._open(self._access(place))
        if source.frozen_state is not None:
            return source.frozen_state
        return _state_of(source, source.list_here().objects)

    def _fetch(self, name: str, place: AdapterPlace, model_digest: str) -> FetchedAdapter:
        access = self._access(place)
        source = self._open(access)
        listed = {one.key for one in source.list_here().objects}
        if not listed:
            raise RejectedError(
                f"there is nothing at {place.uri}: it must name a peft directory, or a bottleneck adapter of Olivine"
            )
        folder = self._scratch / "adapters" / name
        folder.mkdir(parents=True, exist_ok=True)
        digest, trained_on = _download(source, listed, folder)
        if place.digest is not None and digest != place.digest:
            raise RejectedError(
                f"the files at {place.uri} have the digest {digest[:_SHOWN]}…, not the {place.digest[:_SHOWN]}… that its job published:"
                " somebody has changed them; train it again"
            )
        trained_on = place.model_digest or trained_on
        if trained_on is not None and trained_on != model_digest:
            raise RejectedError(
                f"it was trained on another base: its model has the digest {trained_on[:_SHOWN]}…, the bundle's {model_digest[:_SHOWN]}…;"
                " train it on the bundle's model, or put it into a bundle of its own model"
            )
        return FetchedAdapter(uri=place.uri, folder=folder, digest=digest, prompts=self._prompts_of_run(access))

    def _prompts_of_run(self, access: Access) -> list[str]:
        """Of the run whose artifact it is: `<run>/artifacts/<digest>` lies beside `<run>/run/published.json`."""
        run, _, _digest = access.uri.rstrip("/").rpartition(f"/{ARTIFACTS}/")
        if not run:
            return []
        folder, _, record = PUBLISHED.rpartition("/")
        target = self._scratch / "record.json"
        try:
            if not self._open(access.at(f"{run}/{folder}")).get_to_file(record, target):
                return []
            samples = json.loads(target.read_bytes()).get("samples", [])
            return [prompt for one in samples[:_PROMPTS] if isinstance(prompt := one.get("prompt"), str) and prompt]
        except TrainerError as error:
            if error.category is not Category.USER:
                raise
            return []
        except (ValueError, AttributeError, TypeError):  # no record of ours
            return []

    def _access(self, place: AdapterPlace) -> Access:
        secret = LocalObjectReference(name=place.secret) if place.secret is not None else None
        source = Source.model_construct(uri=place.uri, endpoint=place.endpoint, secret_ref=secret)
        prefix = ENV_ADAPTER_PREFIX.format(number=place.credentials) if place.credentials is not None else None
        return access_to(source, self._storage, "adapter", self._environ, prefix=prefix)

    def _open(self, access: Access) -> OpenSource:
        return open_source(access, self._cache, self._scratch, self._environ)


def _as_rejection(work: Callable[[], Result]) -> Result:
    """What the user can mend costs this adapter; a store that is away is the whole build's trouble, which is tried again."""
    try:
        return work()
    except TrainerError as error:
        if error.category is not Category.USER:
            raise
        raise RejectedError(error.message) from None


def _state_of(source: OpenSource, items: list[ObjectInfo]) -> str | None:
    if not items or any(item.tag is None for item in items):
        return None
    described = json.dumps([source.uri, source.place.endpoint, sorted((item.key, item.size, item.tag) for item in items)])
    return hashlib.sha256(described.encode()).hexdigest()


def _download(source: OpenSource, listed: set[str], folder: Path) -> tuple[str, str | None]:
    """The digest, and the digest of the model that it was trained on where its manifest tells it."""
    described = None
    if MANIFEST in listed and source.get_to_file(MANIFEST, folder / MANIFEST):
        try:
            described = parse_manifest((folder / MANIFEST).read_bytes())
        except DamagedFolderError as error:
            raise RejectedError(f"{error}: upload the adapter again") from None
    wanted = list(described.files) if described is not None else [key for key in _NEEDED if key in listed]
    if not {PEFT, BOTTLENECK} & set(wanted):  # a whole model, say: before its gigabytes are fetched
        raise _no_adapter()
    sums: dict[str, str] = {}
    for key in sorted(wanted):
        if not (folder / key).resolve().is_relative_to(folder.resolve()):
            raise RejectedError(f"its {MANIFEST} names {key}, outside the folder: upload the adapter again")
        if not source.get_to_file(key, folder / key):
            raise RejectedError(f"{key} is missing: upload the adapter again")
        source.grant()
        sums[key] = sha256_file(folder / key)
        if described is not None and sums[key] != described.files[key]:
            raise RejectedError(f"{key} is damaged, its sha256 is not that of {MANIFEST}: upload the adapter again")
    trained_on = described.about.get(_MODEL) if described is not None else None
    return folder_digest(sums), trained_on if isinstance(trained_on, str) else None
