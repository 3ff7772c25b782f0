"""The verb `bundle pod`, from top to bottom: what is there, what is new, build and prove it, publish it, move the pointer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from olivine_api.adapterbundle import AdapterStatus, BaseStatus, BundleStatus
from olivine_api.bundle_build import BuildResult, BuildStage, BundleBuild
from olivine_api.reasons import Reason
from olivine_api.status import JobIdentity
from olivine_trainer.bundle.adapter_source import AdapterFetcher
from olivine_trainer.bundle.assembly import AdaptersRejectedError, Assembled, Assembly
from olivine_trainer.bundle.bases import KeptBases, base_name
from olivine_trainer.bundle.build import report_of, sizes_of
from olivine_trainer.bundle.gathering import Gathering
from olivine_trainer.bundle.latest import Latest, Version, former_uids, move_latest, read_latest, require_turn
from olivine_trainer.bundle.layout import BUNDLE, base_folder, bundle_folder
from olivine_trainer.bundle.materials import Materials
from olivine_trainer.bundle.proofs import StoredBook
from olivine_trainer.bundle.record import write_record
from olivine_trainer.bundle.versions import Running, announce, prune, read_version, upload_version
from olivine_trainer.errors import ModelError, StorageUnavailableError, TrainerError
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.credentials import access_to
from olivine_trainer.storage.fetch import FetchedModel, fetch_model, model_state
from olivine_trainer.storage.source import Source, open_source
from olivine_trainer.storage.store import Store


@dataclass(frozen=True)
class Told:
    """Who listens to a build."""

    stage: Callable[[BuildStage], None] = lambda stage: None
    proven: Callable[[int, int], None] = lambda done, total: None
    """How many adapters, of how many."""


def build_in_pod(build: BundleBuild, identity: JobIdentity, environ: Mapping[str, str], scratch: Path, told: Told) -> BuildResult:
    """Make a version of what `build` names, and point to it.

    Raises AdaptersRejectedError where no adapter is left, SupersededError where a newer build was faster: both leave everything as
    it is. What an earlier pod of the build has uploaded, or measured, is taken over.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    bundle = open_bundle(build, identity, environ)
    latest = read_latest(bundle)
    require_turn(latest, identity, build.sequence, latest)
    if (result := _known_result(bundle, build, identity, latest)) is not None:
        log("this build is finished: its result is repeated")
        return result
    told.stage(BuildStage.FETCHING)
    cache = FileCache(scratch / "sources")
    model = _Model(build, environ, cache, scratch)
    model_digest = model.digest(latest)
    name = base_name(model_digest, build.onnx)
    announce(bundle, Running(sequence=build.sequence, base=name))
    gathering = Gathering(
        bundle=bundle,
        build=build,
        model_digest=model_digest,
        base=name,
        latest=latest,
        fetcher=AdapterFetcher(build.storage, environ, cache, scratch),
        scratch=scratch,
    )
    wanted = gathering.gather()
    told.stage(BuildStage.BUILDING)
    bases = KeptBases(bundle)
    materials = Materials(
        name=name, onnx=build.onnx, model_uri=build.model.uri, load_model=model.folder, scratch=scratch, bases=bases
    )

    def proven(done: int, total: int) -> None:
        told.stage(BuildStage.VERIFYING)
        told.proven(done, total)

    try:
        made = Assembly(wanted, materials, StoredBook(bundle), told=proven).assemble()
    except AdaptersRejectedError as error:
        # Nothing is published: what an earlier version points to stays.
        warn("nothing is published: all adapters are rejected", adapters=len(error.adapters))
        raise
    told.stage(BuildStage.PUBLISHING)
    result = _publish(bundle, build, identity, latest, made, materials, gathering, model.state)
    write_record(bundle, build, identity.uid, result)
    return result


def open_bundle(build: BundleBuild, identity: JobIdentity, environ: Mapping[str, str]) -> Store:
    """The bundle's folder. Raises the user's error where the store cannot be used, or lacks conditional writes."""
    bundle = Store(access_to(build.storage, build.storage, "storage", environ)).sub(
        bundle_folder(identity.namespace, identity.name)
    )
    body = b'{"kind": "AdapterBundle"}'
    if bundle.put_if_absent(BUNDLE, body):
        bundle.require_conditional_writes(BUNDLE, body)
    bundle.grant()
    return bundle


class _Model:
    """The base model, fetched when somebody needs its files."""

    def __init__(self, build: BundleBuild, environ: Mapping[str, str], cache: FileCache, scratch: Path) -> None:
        self._build = build
        self._cache = cache
        access = access_to(build.model, build.storage, "model", environ)
        self._source: Source = open_source(access, cache, scratch, environ, revision=build.model.revision)
        self._fetched: FetchedModel | None = None
        self.state: str | None = None

    def digest(self, latest: Latest | None) -> str:
        """As the operator knows it, as the newest version was built from the same files, else of the files themselves."""
        self.state = model_state(self._source)
        known = latest.result.base.model_digest if latest is not None and latest.result.base is not None else None
        if latest is not None and self.state is not None and latest.model_state == self.state and known is not None:
            self._check(known)
            return known
        return self._build.model_digest or self._fetch().digest

    def folder(self) -> Path:
        """The Hugging Face folder. Raises ModelError where it is not the model that the jobs trained on."""
        return self._fetch().folder

    def _fetch(self) -> FetchedModel:
        if self._fetched is None:
            self._fetched = fetch_model(self._source, self._cache)
            self._check(self._fetched.digest)
        return self._fetched

    def _check(self, digest: str) -> None:
        wanted = self._build.model_digest
        if wanted is not None and digest != wanted:
            raise ModelError(
                Reason.SOURCE_CHANGED,
                f"model.uri {self._build.model.uri} has the digest {digest}, but the adapters' jobs trained on {wanted}:"
                " put that model back, name it in model.uri, or train the adapters on the new one",
            )


def _known_result(bundle: Store, build: BundleBuild, identity: JobIdentity, latest: Latest | None) -> BuildResult | None:
    """Of this very build, where a pod before finished it; its pointer is where it belongs."""
    if latest is not None and (latest.uid, latest.sequence, latest.inputs) == (identity.uid, build.sequence, build.digest):
        write_record(bundle, build, identity.uid, latest.result)  # whoever moved the pointer may have died before
        return latest.result
    return None


def _publish(
    bundle: Store,
    build: BundleBuild,
    identity: JobIdentity,
    seen: Latest | None,
    made: Assembled,
    materials: Materials,
    gathering: Gathering,
    state: str | None,
) -> BuildResult:
    """Upload the version, then move the pointer, then remove what is too old."""
    digest = made.manifest.digest
    announce(bundle, Running(sequence=build.sequence, base=materials.base_name, digest=digest))
    require_turn(read_latest(bundle), identity, build.sequence, seen)
    kept = materials.kept
    assert kept is not None
    upload_version(bundle, made, report_of(made), base=(materials.base_name, kept), previous=gathering.previous)
    total, base_bytes = sizes_of(made)
    base = BaseStatus(
        digest=materials.base_name,
        bytes=sum(kept.sizes.values()),
        precision=build.onnx.precision,
        model_digest=made.manifest.model_digest,
        uri=f"{bundle.uri}/{base_folder(materials.base_name)}",
    )

    def make(latest: Latest | None) -> Latest:
        version = _version_of(latest, digest)
        known = {one.name for one in latest.result.adapters} if latest is not None else set[str]()
        adapters = [_with_version(one, version, gathering.stays(one) and one.name in known) for one in made.adapters]
        ready = sum(one.state == "Ready" for one in adapters)
        result = BuildResult(
            base=base,
            bundle=BundleStatus(
                uri=f"{bundle.uri}/{digest}",
                digest=digest,
                version=version,
                total_bytes=total,
                merged_equivalent_bytes=base_bytes * ready,
            ),
            adapters=adapters,
            base_reused=materials.reused,
        )
        before = [one for one in latest.history if one.digest != digest] if latest is not None else []
        return Latest(
            version=version,
            sequence=build.sequence,
            digest=digest,
            inputs=build.digest,
            uid=identity.uid,
            former=former_uids(latest, identity.uid),
            slots=build.onnx.slots,
            model_state=state,
            result=result,
            proofs=made.proofs,
            base_proof=made.base_proof,
            states=gathering.states,
            history=[Version(version=version, digest=digest, base=materials.base_name), *before][:_HISTORY],
        )

    moved = move_latest(bundle, identity, build.sequence, seen, make)
    if read_version(bundle, digest) is None:
        raise StorageUnavailableError(f"{bundle.uri}/{digest} was removed while it was published: the next try uploads it again")
    log(f"version {moved.version} is published", digest=digest)
    try:
        prune(bundle, moved, build.retention.versions)
    except TrainerError as error:
        warn(f"older versions are left behind: {error.message}")
    return moved.result


_HISTORY = 128  # versions that the pointer remembers; retention.versions is at most 100


def _version_of(latest: Latest | None, digest: str) -> int:
    """The same content is the same version."""
    if latest is None:
        return 1
    return latest.version if latest.digest == digest else latest.version + 1


def _with_version(adapter: AdapterStatus, version: int, stays: bool) -> AdapterStatus:
    if adapter.state != "Ready" or (stays and adapter.version is not None):
        return adapter
    return adapter.model_copy(update={"version": version})
