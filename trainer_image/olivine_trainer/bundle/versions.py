"""A bundle's versions in its store: uploaded whole or not there, and removed once they are too old."""

from pathlib import Path

from olivine_api.base import StatusModel
from olivine_trainer.bundle.assembly import Assembled
from olivine_trainer.bundle.latest import Latest, read_latest
from olivine_trainer.bundle.layout import BASES, BUILDS, PROOFS, RUNNING, base_folder, build_key, running_key
from olivine_trainer.bundle.manifest import MANIFEST, REPORT, Manifest
from olivine_trainer.bundle.report import BundleReport
from olivine_trainer.errors import StorageUnavailableError
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.storage.manifest import Manifest as KeptFiles
from olivine_trainer.storage.store import Store


class Running(StatusModel):
    """What a build that has not ended needs: nobody removes it meanwhile."""

    sequence: int
    uid: str
    """Of its AdapterBundle."""
    base: str
    digest: str | None = None
    """Of the version, from the moment that it is uploaded."""


def announce(bundle: Store, running: Running) -> None:
    """Before the first file that is another's business."""
    bundle.put(running_key(running.sequence), running.model_dump_json(by_alias=True).encode())


def read_version(bundle: Store, digest: str) -> Manifest | None:
    """The manifest of a whole version; None where there is none that can be read."""
    found = bundle.get(f"{digest}/{MANIFEST}")
    if found is None:
        return None
    try:
        return Manifest.model_validate_json(found.data)
    except ValueError as error:
        warn(f"{bundle.uri}/{digest}/{MANIFEST} is unreadable: {str(error).splitlines()[0]}")
        return None


def upload_version(
    bundle: Store, made: Assembled, report: BundleReport, *, base: tuple[str, KeptFiles], previous: Manifest | None
) -> None:
    """Make a version exist. What the base's folder or the version before has already is copied by the store itself."""
    manifest = made.manifest
    if bundle.get(f"{manifest.digest}/{MANIFEST}") is not None:
        log("the version is there already", digest=manifest.digest)
        return
    name, kept = base
    before = {file.path: file.sha256 for file in previous.files} if previous is not None else {}
    uploaded = 0
    for file in manifest.files:
        target = f"{manifest.digest}/{file.path}"
        if kept.files.get(file.path) == file.sha256:
            bundle.copy(f"{base_folder(name)}/{file.path}", target, file.bytes)
        elif previous is not None and before.get(file.path) == file.sha256:
            bundle.copy(f"{previous.digest}/{file.path}", target, file.bytes)
        else:
            bundle.put(target, made.folder / file.path)
            uploaded += file.bytes
    bundle.put(f"{manifest.digest}/{REPORT}", (report.model_dump_json(by_alias=True, indent=1) + "\n").encode())
    bundle.put_if_absent(f"{manifest.digest}/{MANIFEST}", manifest.render())
    log("the version is uploaded", digest=manifest.digest, uploadedBytes=uploaded)


def complete_version(bundle: Store, made: Assembled) -> None:
    """Bring here what only the store has of a version, its report and its manifest too."""
    digest = made.manifest.digest
    paths = [*(file.path for file in made.manifest.files), REPORT, MANIFEST]
    for path in paths:
        if not (made.folder / path).exists() and not bundle.get_to_file(f"{digest}/{path}", made.folder / path):
            raise StorageUnavailableError(f"{bundle.uri}/{digest}/{path} was removed while it was published")


def prune(bundle: Store, latest: Latest, keep: int) -> None:
    """Remove all but the newest versions, then bases, results and proofs that nobody uses; what a newer build is at stays."""
    now = read_latest(bundle)
    if now is None or (now.uid, now.sequence) != (latest.uid, latest.sequence):
        return  # whoever has moved it since knows what is needed
    kept = latest.history[:keep]
    digests, bases = {one.digest for one in kept}, {one.base for one in kept}
    running = [_read_running(bundle, item.key) for item in bundle.list(RUNNING)]
    newer = [one for one in running if one is not None and _may_publish(one, latest)]
    spared, needed = digests | {one.digest for one in newer if one.digest is not None}, bases | {one.base for one in newer}
    over = [one for one in running if one is not None and not _may_publish(one, latest)]
    doomed = {one.digest for one in (*latest.history[keep:], *over) if one.digest is not None} - spared
    for digest in sorted(doomed & set(bundle.list_here().folders)):
        _remove(bundle, digest)
    for folder in bundle.sub(BASES).list_here().folders:
        if folder not in needed:
            _remove(bundle, base_folder(folder))
    _prune_builds(bundle, digests)
    if not newer:
        used = {*latest.proofs.values(), latest.base_proof}
        bundle.delete(item.key for item in bundle.list(PROOFS) if Path(item.key).stem not in used)
    bundle.delete(running_key(one.sequence) for one in over)


def read_record(bundle: Store, inputs: str) -> Latest | None:
    """What the newest build of these inputs pointed to; None where there is none that can be read."""
    found = bundle.get(build_key(inputs))
    try:
        return Latest.model_validate_json(found.data) if found is not None else None
    except ValueError:
        return None


def _prune_builds(bundle: Store, digests: set[str]) -> None:
    for item in bundle.list(BUILDS):
        record = read_record(bundle, Path(item.key).stem)
        if record is None or record.digest not in digests:
            bundle.delete([item.key])


def _remove(bundle: Store, folder: str) -> None:
    """The manifest goes first: what is half deleted must not look whole."""
    keys = [item.key for item in bundle.list(folder)]
    bundle.delete(sorted(keys, key=lambda key: key != f"{folder}/{MANIFEST}"))


def _may_publish(running: Running, latest: Latest) -> bool:
    """Whether the pointer may still be this build's to move, as `require_turn` has it."""
    if running.uid == latest.uid:
        return running.sequence > latest.sequence
    return running.uid not in latest.former


def _read_running(bundle: Store, key: str) -> Running | None:
    found = bundle.get(key)
    try:
        return Running.model_validate_json(found.data) if found is not None else None
    except ValueError:
        warn(f"{bundle.uri}/{key} is unreadable")
        return None
