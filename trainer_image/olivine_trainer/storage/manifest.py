"""Folders that exist only once their manifest does: upload in order, read back verified."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivine_trainer.digests import folder_digest, sha256_file
from olivine_trainer.storage.layout import MANIFEST
from olivine_trainer.storage.store import Store


@dataclass(frozen=True)
class Manifest:
    """What a complete folder holds."""

    files: dict[str, str]
    """sha256 (hex) by path."""
    sizes: dict[str, int]
    """Bytes by path."""
    about: dict[str, Any]
    """What the writer wants to tell, e.g. the step."""

    @property
    def digest(self) -> str:
        """sha256 over the sorted (path, sha256) of the files."""
        return folder_digest(self.files)

    def render(self) -> bytes:
        """The manifest as JSON."""
        files = [{"path": path, "sha256": self.files[path], "bytes": self.sizes[path]} for path in sorted(self.files)]
        return json.dumps({"version": 1, "digest": self.digest, **self.about, "files": files}, indent=1).encode()


class DamagedFolderError(Exception):
    """A folder's content is not what its manifest says; the text names the file."""


def describe(folder: Path, about: dict[str, Any]) -> Manifest:
    """The manifest of a folder on disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    return Manifest(
        files={names[path]: sha256_file(path) for path in paths},
        sizes={names[path]: path.stat().st_size for path in paths},
        about=about,
    )


def manifest_of(folder: Path, about: dict[str, Any]) -> Manifest:
    """The manifest of a finished folder. One that it has already (a bundle's) keeps the files that it lists, and what it says."""
    try:
        raw = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return describe(folder, about)
    files = raw.pop("files")
    return Manifest(
        files={str(item["path"]): str(item["sha256"]) for item in files},
        sizes={str(item["path"]): int(item["bytes"]) for item in files},
        about={name: value for name, value in raw.items() if name not in ("version", "digest")} | about,
    )


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """The files of a finished folder that its digest leaves out: a bundle's report.json."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if path not in manifest.files and path != MANIFEST)


def upload_files(store: Store, key: str, folder: Path, manifest: Manifest, *, may_write: Callable[[], None]) -> None:
    """Write a folder's files; without `write_manifest` after it the folder does not exist.

    `may_write` is asked before each of them: it raises where another attempt owns the run.
    """
    for path in sorted(manifest.files):
        may_write()
        store.put(f"{key}/{path}", folder / path)


def write_manifest(store: Store, key: str, manifest: Manifest) -> bool:
    """Make the folder exist; False where a manifest stood there already."""
    return store.put_if_absent(f"{key}/{MANIFEST}", manifest.render())


def read_manifest(store: Store, key: str) -> Manifest:
    """The manifest of a stored folder. Raises DamagedFolderError where it is absent or unreadable."""
    found = store.get(f"{key}/{MANIFEST}")
    if found is None:
        raise DamagedFolderError("it has no manifest")
    return parse_manifest(found.data)


def parse_manifest(data: bytes) -> Manifest:
    """What `Manifest.render` wrote. Raises DamagedFolderError where it is unreadable."""
    try:
        raw = json.loads(data)
        files = raw.pop("files")
        manifest = Manifest(
            files={str(item["path"]): str(item["sha256"]) for item in files},
            sizes={str(item["path"]): int(item["bytes"]) for item in files},
            about={name: value for name, value in raw.items() if name not in ("version", "digest")},
        )
        digest = raw["digest"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFolderError(f"its manifest is unreadable ({error})") from error
    if manifest.digest != digest:
        raise DamagedFolderError("its manifest contradicts itself")
    return manifest


def download_verified(store: Store, key: str, target: Path) -> Manifest:
    """Fetch a stored folder and check each file. Raises DamagedFolderError naming the first file that is not as it was written."""
    manifest = read_manifest(store, key)
    for path, expected in sorted(manifest.files.items()):
        local = target / path
        if not local.resolve().is_relative_to(target.resolve()):
            raise DamagedFolderError(f"its manifest names {path}, outside the folder")
        if not store.get_to_file(f"{key}/{path}", local):
            raise DamagedFolderError(f"{path} is missing")
        if sha256_file(local) != expected:
            raise DamagedFolderError(f"{path} is damaged (sha256 differs from the manifest)")
    return manifest
