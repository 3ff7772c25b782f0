"""Builds of a bundle in a real store: the tiny model, random adapters, and a look at what was written."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore

from olivine_api.bundle_build import BuildResult, BundleBuild
from olivine_api.status import JobIdentity
from olivine_trainer.bundle.latest import Latest
from olivine_trainer.bundle.pod import Told, build_in_pod
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.manifest import describe, upload_files, write_manifest
from olivine_trainer.storage.store import Store


@dataclass
class Shop:
    """A bundle's folder in a store, its model, and the environment of its builder pods."""

    access: Access
    """Of the storage."""
    environ: Mapping[str, str]
    scratch: Path
    name: str = "tones"
    uid: str = "u1"
    onnx: dict[str, Any] = field(default_factory=lambda: {"precision": "int8"})
    verify: dict[str, Any] = field(default_factory=lambda: {"maxExtraKL": 1.0, "prompts": ["Phrase: ha"]})
    sequence: int = 0

    @property
    def store(self) -> Store:
        return Store(self.access)

    @property
    def bundle(self) -> Store:
        return self.store.sub(f"team/bundles/{self.name}")

    @property
    def identity(self) -> JobIdentity:
        return JobIdentity(namespace="team", name=self.name, uid=self.uid, child="")

    def upload(self, key: str, folder: Path, **about: Any) -> str:
        """A folder into the store, with `about` as a FineTuneJob's artifact; returns its address."""
        manifest = describe(folder, about)
        upload_files(self.store, key, folder, manifest, may_write=lambda: None)
        if about:
            write_manifest(self.store, key, manifest)
        return f"{self.store.uri}/{key}"

    def build(self, adapters: Mapping[str, str | dict[str, Any]], **changes: Any) -> BundleBuild:
        """The next one; an adapter is its address, or its members."""
        self.sequence += 1
        entries = [{"name": name, **({"uri": one} if isinstance(one, str) else one)} for name, one in adapters.items()]
        raw: dict[str, Any] = {
            "sequence": self.sequence,
            "model": {"uri": f"{self.store.uri}/model"},
            "adapters": entries,
            "onnx": self.onnx,
            "verify": self.verify,
            "storage": {"uri": self.store.uri, "endpoint": self.access.endpoint},
            **changes,
        }
        inputs = {name: value for name, value in raw.items() if name != "sequence"}
        raw.setdefault("digest", hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest())
        return BundleBuild.model_validate(raw)

    def run(self, build: BundleBuild, told: Told | None = None) -> BuildResult:
        """What the pod's worker does, in this process, with a scratch of its own."""
        scratch = self.scratch / f"{build.sequence}-{len(list(self.scratch.glob('*')))}"
        return build_in_pod(build, self.identity, self.environ, scratch, told or Told())

    def latest(self) -> Latest:
        found = self.bundle.get("latest.json")
        assert found is not None
        return Latest.model_validate_json(found.data)

    def tags(self, prefix: str = "") -> dict[str, tuple[str | None, Any]]:
        """Tag and time of every object: what was written again has another time."""
        store = self.bundle
        found: dict[str, tuple[str | None, Any]] = {}
        for item in store.list(prefix):
            meta = obstore.head(store._store, store._path(item.key))
            found[item.key] = (item.tag, meta["last_modified"])
        return found
