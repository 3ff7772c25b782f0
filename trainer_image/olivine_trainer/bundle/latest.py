"""latest.json: which version of a bundle is the newest. It moves with If-Match, and never back to an older build."""

from collections.abc import Callable
from typing import Literal

from olivine_api.base import StatusModel
from olivine_api.bundle_build import BuildResult
from olivine_api.status import JobIdentity
from olivine_trainer.bundle.layout import LATEST
from olivine_trainer.errors import StorageUnavailableError, SupersededError
from olivine_trainer.storage.store import Store

_TRIES = 16
_FORMER = 16


class Version(StatusModel):
    """One version that was published."""

    version: int
    digest: str
    base: str
    """The name of its base's folder."""


class Latest(StatusModel):
    """The newest version, and what the next build can take over from it."""

    version: int
    sequence: int
    """Of the build that made it."""
    digest: str
    """Names the version's folder."""
    inputs: str
    """Names what it was built from."""
    uid: str
    """Of the AdapterBundle: one that was deleted and made anew counts its builds from 1 again."""
    former: list[str] = []
    """uids of those before it: none of their pods may move the pointer any more."""
    slots: Literal["Union", "AllLinear"]
    model_state: str | None = None
    """Names what lay at model.uri, by the store's own tags."""
    result: BuildResult
    proofs: dict[str, str]
    """Names of the proofs, by adapter."""
    base_proof: str
    states: dict[str, str] = {}
    """What lay at the adapters' addresses, by the stores' own tags."""
    history: list[Version]
    """Published versions, this one first."""


def read_latest(bundle: Store) -> Latest | None:
    """Where the pointer stands; None before the first version."""
    found = bundle.get(LATEST)
    return _parse(bundle, found.data) if found is not None else None


def require_turn(latest: Latest | None, identity: JobIdentity, sequence: int, seen: Latest | None) -> None:
    """Raise SupersededError where the pointer is not this build's to move; `seen`: where it stood when the build began."""
    if latest is None:
        return
    if identity.uid in latest.former:
        raise SupersededError(f"the AdapterBundle {identity.name} was made anew: a build of the one before writes nothing more")
    same = latest.uid == identity.uid
    if same and latest.sequence > sequence:
        raise SupersededError(
            f"build {latest.sequence} has published version {latest.version}: build {sequence} writes nothing more"
        )
    if not same and (seen is None or seen.uid != latest.uid):
        raise SupersededError(
            f"another AdapterBundle {identity.name} has published meanwhile: build {sequence} writes nothing more"
        )


def move_latest(
    bundle: Store, identity: JobIdentity, sequence: int, seen: Latest | None, make: Callable[[Latest | None], Latest]
) -> Latest:
    """Point to what `make` makes of the pointer as it stands. Raises SupersededError where a newer build was faster."""
    for _ in range(_TRIES):
        found = bundle.get(LATEST)
        latest = _parse(bundle, found.data) if found is not None else None
        require_turn(latest, identity, sequence, seen)
        moved = make(latest)
        body = moved.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()
        if bundle.put_if_absent(LATEST, body) if found is None else bundle.put_if_match(LATEST, body, found.etag):
            return moved
    raise StorageUnavailableError(f"{bundle.uri}/{LATEST} was moved by others {_TRIES} times in a row")


def former_uids(latest: Latest | None, uid: str) -> list[str]:
    """The uids before `uid`."""
    if latest is None:
        return []
    known = latest.former if latest.uid == uid else [*latest.former, latest.uid]
    return known[-_FORMER:]


def _parse(bundle: Store, data: bytes) -> Latest:
    try:
        return Latest.model_validate_json(data)
    except ValueError as error:
        raise StorageUnavailableError(
            f"{bundle.uri}/{LATEST} is damaged ({str(error).splitlines()[0]}): put it back, or start a new bundle"
        ) from None
