"""One build's hand on latest.json: whether it is its turn, whether it is done already, and the move."""

from dataclasses import dataclass

from olivine_api.adapterbundle import BaseStatus, BundleStatus
from olivine_api.bundle_build import BuildResult, BundleBuild
from olivine_api.status import JobIdentity
from olivine_trainer.bundle.assembly import Assembled
from olivine_trainer.bundle.build import sizes_of
from olivine_trainer.bundle.latest import Latest, Version, move_latest, read_latest, require_turn
from olivine_trainer.bundle.layout import build_key
from olivine_trainer.bundle.versions import read_record, read_version
from olivine_trainer.errors import StorageUnavailableError
from olivine_trainer.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the pointer tells of a version."""

    made: Assembled
    base: BaseStatus
    base_reused: bool
    model_state: str | None
    states: dict[str, str]


class Pointer:
    """Raises SupersededError where another build has moved it."""

    def __init__(self, bundle: Store, build: BundleBuild, identity: JobIdentity) -> None:
        self._bundle = bundle
        self._build = build
        self._identity = identity
        self.seen = read_latest(bundle)
        """Where it stood when this build began."""
        require_turn(self.seen, identity, build.sequence, self.seen)

    def known(self) -> Latest | None:
        """The end of this build, where a pod before came so far; or of an earlier one of the same inputs, which is pointed to again.

        The latter only where nothing can have changed behind an address, nothing was rejected that may be there now, and no hub's
        repository, which holds the newest version alone, has to become this one again.
        """
        seen, build = self.seen, self._build
        if seen is not None and (seen.uid, seen.sequence, seen.inputs) == (self._identity.uid, build.sequence, build.digest):
            self._record(seen)  # whoever moved it may have died before
            return seen
        pinned = build.model_digest is not None and all(one.digest is not None for one in build.adapters)
        on_hub = build.publish is not None and build.publish.uri.startswith("hf://")
        record = read_record(self._bundle, build.digest) if pinned and not on_hub else None
        sound = record is not None and all(one.state == "Ready" and one.reason is None for one in record.result.adapters)
        if record is None or not sound or read_version(self._bundle, record.digest) is None:
            return None
        return self._move(record)

    def require_turn(self) -> None:
        """Look again."""
        require_turn(read_latest(self._bundle), self._identity, self._build.sequence, self.seen)

    def move(self, content: Content) -> Latest:
        """Point to a version that is uploaded, and write down what the build came to."""
        made, build = content.made, self._build
        total, base_bytes = sizes_of(made)
        digest = made.manifest.digest
        ready = [one.name for one in made.adapters if one.state == "Ready"]
        # An adapter that stands in for one that was rejected is not what lies at the address.
        from_there = {one.name for one in made.adapters if one.state == "Ready" and one.reason is None}
        bundle = BundleStatus(
            uri=f"{self._bundle.uri}/{digest}",
            digest=digest,
            version=0,  # told by the move
            total_bytes=total,
            merged_equivalent_bytes=base_bytes * len(ready),
        )
        return self._move(
            Latest(
                version=0,
                sequence=build.sequence,
                digest=digest,
                inputs=build.digest,
                uid=self._identity.uid,
                model_state=content.model_state,
                result=BuildResult(
                    base=content.base,
                    bundle=bundle,
                    adapters=made.adapters,
                    base_reused=content.base_reused,
                    not_verified=made.base.not_verified,
                ),
                proofs=made.proofs,
                base_proof=made.base_proof,
                states={name: state for name, state in content.states.items() if name in from_there},
                history=[Version(version=0, digest=digest, base=made.manifest.base_name)],
            )
        )

    def _move(self, content: Latest) -> Latest:
        sequence, uid = self._build.sequence, self._identity.uid
        moved = move_latest(
            self._bundle, self._identity, sequence, self.seen, lambda latest: content.after(latest, sequence=sequence, uid=uid)
        )
        if read_version(self._bundle, moved.digest) is None:
            raise StorageUnavailableError(
                f"{self._bundle.uri}/{moved.digest} was removed while it was published: the next try uploads it again"
            )
        self._record(moved)
        return moved

    def _record(self, moved: Latest) -> None:
        self._bundle.put(build_key(self._build.digest), moved.render())
