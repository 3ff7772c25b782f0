"""latest.json: which version of a bundle is the newest. It moves with If-Match, and never back to an older build."""

from collections.abc import Callable

from olivine_api.base import StatusModel
from olivine_api.bundle_build import BuildResult
from olivine_api.status import JobIdentity
from olivine_trainer.bundle.layout import LATEST
from olivine_trainer.errors import StorageUnavailableError, SupersededError
from olivine_trainer.storage.store import Store

_TRIES = 16
_FORMER = 16
_HISTORY = 128  # versions that it remembers; retention.versions is at most 100


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

    def render(self) -> bytes:
        """The file's content."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()

    def after(self, latest: "Latest | None", *, sequence: int, uid: str) -> "Latest":
        """The same content as the next version after `latest`, or as the same one where nothing changed."""
        version = 1 if latest is None else latest.version if latest.digest == self.digest else latest.version + 1
        former = [] if latest is None else latest.former if latest.uid == uid else [*latest.former, latest.uid]
        before = [one for one in latest.history if one.digest != self.digest] if latest is not None else []
        adapters = [
            one.model_copy(update={"version": version}) if one.state == "Ready" and one.version is None else one
            for one in self.result.adapters
        ]
        bundle = self.result.bundle.model_copy(update={"version": version}) if self.result.bundle is not None else None
        this = Version(version=version, digest=self.digest, base=self.history[0].base)
        return self.model_copy(
            update={
                "version": version,
                "sequence": sequence,
                "uid": uid,
                "former": former[-_FORMER:],
                "result": self.result.model_copy(update={"bundle": bundle, "adapters": adapters}),
                "history": [this, *before][:_HISTORY],
            }
        )


def read_latest(bundle: Store) -> Latest | None:
    """Where the pointer stands; None before the first version."""
    found = bundle.get(LATEST)
    return parse_latest(bundle, LATEST, found.data) if found is not None else None


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
        latest = parse_latest(bundle, LATEST, found.data) if found is not None else None
        require_turn(latest, identity, sequence, seen)
        moved = make(latest)
        if (
            bundle.put_if_absent(LATEST, moved.render())
            if found is None
            else bundle.put_if_match(LATEST, moved.render(), found.etag)
        ):
            return moved
    raise StorageUnavailableError(f"{bundle.uri}/{LATEST} was moved by others {_TRIES} times in a row")


def parse_latest(bundle: Store, key: str, data: bytes) -> Latest:
    """Raises StorageUnavailableError where it is damaged."""
    try:
        return Latest.model_validate_json(data)
    except ValueError as error:
        raise StorageUnavailableError(
            f"{bundle.uri}/{key} is damaged ({str(error).splitlines()[0]}): put it back, or start a new bundle"
        ) from None
