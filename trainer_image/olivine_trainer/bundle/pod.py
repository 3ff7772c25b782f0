"""The verb `bundle pod`, from top to bottom: what is there, what is new, build and prove it, publish it, move the pointer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from olivine_api.adapterbundle import BaseStatus
from olivine_api.bundle_build import BuildResult, BuildStage, BundleBuild
from olivine_api.reasons import Reason
from olivine_api.status import JobIdentity
from olivine_trainer.bundle.adapter_source import AdapterFetcher
from olivine_trainer.bundle.assembly import Assembly
from olivine_trainer.bundle.bases import KeptBases, base_name
from olivine_trainer.bundle.build import report_of
from olivine_trainer.bundle.gathering import Gathering
from olivine_trainer.bundle.latest import Latest
from olivine_trainer.bundle.layout import BUNDLE, base_folder, bundle_folder
from olivine_trainer.bundle.manifest import Manifest
from olivine_trainer.bundle.materials import Materials
from olivine_trainer.bundle.pointer import Content, Pointer
from olivine_trainer.bundle.proofs import StoredBook
from olivine_trainer.bundle.versions import Running, announce, complete_version, prune, upload_version
from olivine_trainer.errors import ConfigurationError, ModelError, TrainerError
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.storage.addresses import same_endpoint
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.credentials import Access, access_to
from olivine_trainer.storage.fetch import FetchedModel, fetch_model, model_state
from olivine_trainer.storage.publishing import publish_folder, require_writable
from olivine_trainer.storage.source import Source, hub_is_forbidden, open_source
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
    pointer = Pointer(bundle, build, identity)
    if (known := pointer.known()) is not None:
        log(f"this build is finished: the result of version {known.version} is repeated")
        return known.result
    told.stage(BuildStage.FETCHING)
    second = _second_place(build, identity, environ)
    cache = FileCache(scratch / "sources")
    model = _Model(build, environ, cache, scratch)
    model_digest = model.digest(pointer.seen)
    name = base_name(model_digest, build.onnx)
    announce(bundle, Running(sequence=build.sequence, uid=identity.uid, base=name))
    fetcher = AdapterFetcher(build.storage, environ, cache, scratch)
    gathering = Gathering(build, bundle, pointer.seen, base=name, model_digest=model_digest, scratch=scratch)
    wanted = gathering.gather(fetcher)
    told.stage(BuildStage.BUILDING)
    materials = Materials(
        name=name,
        onnx=build.onnx,
        model_uri=build.model.uri,
        load_model=model.folder,
        scratch=scratch,
        bases=KeptBases(bundle),
    )

    def proven(done: int, total: int) -> None:
        told.stage(BuildStage.VERIFYING)
        told.proven(done, total)

    made = Assembly(wanted, materials, StoredBook(bundle), told=proven).assemble()
    told.stage(BuildStage.PUBLISHING)
    announce(bundle, Running(sequence=build.sequence, uid=identity.uid, base=name, digest=made.manifest.digest))
    pointer.require_turn()
    kept = materials.kept
    assert kept is not None
    upload_version(bundle, made, report_of(made), base=(name, kept), previous=gathering.previous)
    if second is not None:
        complete_version(bundle, made)
        prefix = f"{bundle_folder(identity.namespace, identity.name)}/{made.manifest.digest}"
        title = f"{identity.namespace}/{identity.name}: {made.manifest.digest[:12]}"
        placed = publish_folder(second, made.folder, prefix, {}, title=title, may_write=pointer.require_turn)
        log("the version is in its second place, too", uri=placed.uri)
    moved = pointer.move(
        Content(
            made=made,
            base=_base_status(bundle, build, made.manifest, size=sum(kept.sizes.values()), revision=model.revision),
            base_reused=materials.reused,
            model_state=model.state,
            states=gathering.states,
        )
    )
    log(f"version {moved.version} is published", digest=moved.digest)
    try:
        prune(bundle, moved, build.retention.versions)
    except TrainerError as error:
        warn(f"older versions are left behind: {error.message}")
    return moved.result


def _base_status(bundle: Store, build: BundleBuild, manifest: Manifest, *, size: int, revision: str | None) -> BaseStatus:
    return BaseStatus(
        digest=manifest.base_name,
        bytes=size,
        precision=build.onnx.precision,
        model_digest=manifest.model_digest,
        model_uri=build.model.uri,
        model_revision=revision,
        uri=f"{bundle.uri}/{base_folder(manifest.base_name)}",
    )


def open_bundle(build: BundleBuild, identity: JobIdentity, environ: Mapping[str, str]) -> Store:
    """The bundle's folder. Raises the user's error where the store cannot be used, or lacks conditional writes."""
    bundle = Store(access_to(build.storage, build.storage, "storage", environ)).sub(
        bundle_folder(identity.namespace, identity.name)
    )
    body = b'{"kind": "AdapterBundle"}'
    # Read first: some stores would make a bucket that is not there with its first object.
    if bundle.get(BUNDLE) is None and bundle.put_if_absent(BUNDLE, body):
        bundle.require_conditional_writes(BUNDLE, body)
    bundle.grant()
    return bundle


def _second_place(build: BundleBuild, identity: JobIdentity, environ: Mapping[str, str]) -> Access | None:
    """Of spec.publish. Raises the user's error where nothing can be written there: before the work, not after it."""
    if build.publish is None:
        return None
    access = access_to(build.publish, build.storage, "bundle-publish", environ)
    first = access_to(build.storage, build.storage, "storage", environ)
    if access.uri.rstrip("/") == first.uri.rstrip("/") and same_endpoint(access.endpoint, first.endpoint):
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"publish.uri {access.uri} is storage.uri, where every version lies anyway: write another prefix, or leave publish out",
        )
    require_writable(access, bundle_folder(identity.namespace, identity.name), hub_offline=hub_is_forbidden(environ))
    return access


class _Model:
    """The base model, fetched when somebody needs its files."""

    def __init__(self, build: BundleBuild, environ: Mapping[str, str], cache: FileCache, scratch: Path) -> None:
        self._build = build
        self._cache = cache
        access = access_to(build.model, build.storage, "model", environ)
        self._source: Source = open_source(access, cache, scratch, environ, revision=build.model.revision)
        self._fetched: FetchedModel | None = None
        self._listed: str | None = None
        self.state: str | None = None
        """What lies there, where its digest is known from its files, not from what the operator says."""
        self.revision = self._source.revision or build.model.revision

    def digest(self, latest: Latest | None) -> str:
        """As the operator knows it, as the newest version was built from the same files, else of the files themselves."""
        state = self._listed = model_state(self._source)
        known = latest.result.base.model_digest if latest is not None and latest.result.base is not None else None
        if latest is not None and state is not None and latest.model_state == state and known is not None:
            self._check(known)
            self.state = state
            return known
        return self._build.model_digest or self._fetch().digest

    def folder(self) -> Path:
        """The Hugging Face folder. Raises ModelError where it is not the model that the jobs trained on."""
        return self._fetch().folder

    def _fetch(self) -> FetchedModel:
        if self._fetched is None:
            self._fetched = fetch_model(self._source, self._cache)
            self._check(self._fetched.digest)
            self.state = self._listed
        return self._fetched

    def _check(self, digest: str) -> None:
        wanted = self._build.model_digest
        if wanted is not None and digest != wanted:
            raise ModelError(
                Reason.SOURCE_CHANGED,
                f"model.uri {self._build.model.uri} has the digest {digest}, but the adapters' jobs trained on {wanted}:"
                " put that model back, name it in model.uri, or train the adapters on the new one",
            )
