"""The base, kept once for all versions of a bundle: found by what it is built from, so that a later build builds and uploads none."""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from olivine_api.adapterbundle import Onnx
from olivine_trainer.bundle.base import builder_options
from olivine_trainer.bundle.layout import base_folder
from olivine_trainer.digests import sha256_file
from olivine_trainer.errors import StorageUnavailableError
from olivine_trainer.reporting.logs import log
from olivine_trainer.storage.layout import MANIFEST
from olivine_trainer.storage.manifest import (
    DamagedFolderError,
    Manifest,
    describe,
    read_manifest,
    upload_files,
    write_manifest,
)
from olivine_trainer.storage.store import Store

_WEIGHTS = ".data"
_LAYOUT = 3  # of slots and adapters' files: those of another one are never taken over
_BUILDERS = ("onnxruntime-genai", "onnx-ir")


def base_name(model_digest: str, onnx: Onnx) -> str:
    """Names a base by all that decides its bytes: the model, what it is for, the builder and its options."""
    parts = {
        "model": model_digest,
        "precision": onnx.precision,
        "target": onnx.target,
        "options": list(builder_options(onnx)),
        "layout": _LAYOUT,
        "builders": {name: importlib.metadata.version(name) for name in _BUILDERS},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class KeptBases:
    """The bases in a bundle's folder."""

    def __init__(self, bundle: Store) -> None:
        self._bundle = bundle

    def fetch_graph(self, name: str, folder: Path) -> Manifest | None:
        """Bring a base here but for its weights; None where there is none, or none that is whole."""
        try:
            kept = read_manifest(self._bundle, base_folder(name))
            self._fetch(name, folder, kept, [path for path in kept.files if not path.endswith(_WEIGHTS)])
        except DamagedFolderError as error:
            log(f"a base has to be built: {error}", base=name)
            return None
        return kept

    def complete(self, name: str, folder: Path, kept: Manifest) -> None:
        """Bring the rest of it. Raises StorageUnavailableError where that is damaged: the next pod builds the base anew."""
        try:
            self._fetch(name, folder, kept, [path for path in kept.files if not (folder / path).exists()])
        except DamagedFolderError as error:
            self._bundle.delete([f"{base_folder(name)}/{MANIFEST}"])
            raise StorageUnavailableError(
                f"the base that is kept at {self._bundle.uri}/{base_folder(name)} is damaged, the next try builds it anew: {error}"
            ) from None

    def _fetch(self, name: str, folder: Path, kept: Manifest, paths: list[str]) -> None:
        for path in paths:
            if not self._bundle.get_to_file(f"{base_folder(name)}/{path}", folder / path):
                raise DamagedFolderError(f"{path} is missing")
            if sha256_file(folder / path) != kept.files[path]:
                raise DamagedFolderError(f"{path} is damaged (sha256 differs from the manifest)")

    def keep(self, name: str, folder: Path, about: dict[str, Any]) -> Manifest:
        """Upload a base that was just built; what stands there is no whole one, and is replaced."""
        key, manifest = base_folder(name), describe(folder, about)
        self._bundle.delete([f"{key}/{MANIFEST}"])
        upload_files(self._bundle, key, folder, manifest, may_write=lambda: None)
        write_manifest(self._bundle, key, manifest)
        log("the base is kept for versions to come", base=name, bytes=sum(manifest.sizes.values()))
        return manifest
