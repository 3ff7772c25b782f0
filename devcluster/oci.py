"""OCI image archives without a registry or a builder: written file by file, byte for byte the same each time."""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_EPOCH = "1970-01-01T00:00:00Z"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Layer:
    """A layer as an uncompressed tar: importing it costs no decompression."""

    path: Path
    digest: str
    size: int

    @classmethod
    def of(cls, path: Path) -> "Layer":
        """Measures a tar that is there."""
        with path.open("rb") as stream:
            return cls(path, "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)


@dataclass(frozen=True)
class ImageConfig:
    """How a container of the image starts."""

    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict[str, str])
    user: str = ""
    working_dir: str = ""

    def to_oci(self, layers: Sequence[Layer]) -> dict[str, Any]:
        """The image configuration as OCI's specification writes it."""
        config: dict[str, Any] = {"Env": [f"{key}={value}" for key, value in self.env.items()], "Entrypoint": list(self.command)}
        if self.user:
            config["User"] = self.user
        if self.working_dir:
            config["WorkingDir"] = self.working_dir
        return {
            "architecture": _ARCHITECTURES[os.uname().machine],
            "os": "linux",
            "created": _EPOCH,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            "history": [{"created": _EPOCH, "created_by": "olivine devcluster"} for _ in layers],
        }


def write_layer(root: Path, target: Path) -> Layer:
    """Packs a folder: sorted, all times zero, owners kept (where root built it), no set-user-id bits, no devices."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as layer:
        for path in sorted(root.rglob("*")):
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                continue
            info = layer.gettarinfo(path, arcname=str(path.relative_to(root)))
            info.mtime = 0
            info.uname = info.gname = ""
            info.mode &= ~(stat.S_ISUID | stat.S_ISGID)
            if info.isreg():
                with path.open("rb") as stream:
                    layer.addfile(info, stream)
            else:
                layer.addfile(info)
    return Layer.of(target)


def write_archive(target: Path, name: str, config: ImageConfig, layers: Sequence[Layer], present: Sequence[Layer] = ()) -> None:
    """Writes what `ctr images import` reads. Layers in `present` are named, not carried: the node has them already."""
    config_blob = _json(config.to_oci(layers))
    media = "application/vnd.oci.image"
    manifest_blob = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{media}.manifest.v1+json",
            "config": _descriptor(f"{media}.config.v1+json", config_blob),
            "layers": [{"mediaType": f"{media}.layer.v1.tar", "digest": layer.digest, "size": layer.size} for layer in layers],
        }
    )
    manifest = _descriptor(f"{media}.manifest.v1+json", manifest_blob)
    manifest["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", _json({"schemaVersion": 2, "manifests": [manifest]}))
        for blob in (config_blob, manifest_blob):
            _add(archive, "blobs/sha256/" + hashlib.sha256(blob).hexdigest(), blob)
        for layer in layers:
            if layer not in present:
                info = tarfile.TarInfo("blobs/sha256/" + layer.digest.removeprefix("sha256:"))
                info.size = layer.size
                with layer.path.open("rb") as stream:
                    archive.addfile(info, stream)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": "sha256:" + hashlib.sha256(blob).hexdigest(), "size": len(blob)}


def _add(archive: tarfile.TarFile, name: str, blob: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(blob)
    archive.addfile(info, io.BytesIO(blob))
