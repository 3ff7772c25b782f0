"""The cluster's images: pause, and the operator's and the trainer's code on a minimal Debian.

The third-party environment is not in them: it is the checkout's own, mounted by a claim.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster import gobuild
from devcluster.cache import digest, sources
from devcluster.console import say
from devcluster.node import PAUSE_IMAGE, ctr
from devcluster.oci import ImageConfig, Layer, write_archive, write_layer
from devcluster.paths import CHECKOUT
from devcluster.rootfs import USER, base_layer
from devcluster.shell import run
from devcluster.slots import Slot

_CODE = "opt/olivine/code"
_PACKAGES = (
    CHECKOUT / "operator" / "olivine_api",
    CHECKOUT / "operator" / "olivine_operator",
    CHECKOUT / "trainer_image" / "olivine_trainer",
)
_ENV = {
    "PATH": "/opt/olivine/venv/bin:/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": f"/{_CODE}",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HOME": "/tmp",
}


@dataclass(frozen=True)
class Image:
    """An image by name; the tag is a digest of all that it holds."""

    repository: str
    tag: str
    config: ImageConfig

    @property
    def name(self) -> str:
        """Repository and tag."""
        return f"{self.repository}:{self.tag}"


@dataclass(frozen=True)
class Images:
    """The two images of one state of the checkout."""

    operator: Image
    trainer: Image


def _describe(code: Mapping[str, bytes]) -> Images:
    """The two images that hold this code, without building them."""
    parts = {**code, "base": base_layer().digest.encode()}

    def image(short: str, dockerfile: Path) -> Image:
        config = ImageConfig(_entrypoint(dockerfile), _ENV, str(USER), "/tmp")
        described = json.dumps(asdict(config), sort_keys=True).encode()
        return Image(f"olivine.local/{short}", digest({**parts, "config": described})[:12], config)

    return Images(
        image("operator", CHECKOUT / "operator" / "Dockerfile"), image("trainer", CHECKOUT / "trainer_image" / "Dockerfile")
    )


def _entrypoint(dockerfile: Path) -> tuple[str, ...]:
    """As the real image has it."""
    return tuple(json.loads(dockerfile.read_text().rpartition("\nENTRYPOINT ")[2]))


def load(slot: Slot) -> Images:
    """Brings the two images, as the checkout is now, onto the node."""
    # Read once: somebody may be editing it, and the tag must tell the truth.
    contents = _code()
    images = _describe(contents)
    there = _on_node(slot)
    wanted = [image for image in (images.operator, images.trainer) if image.name not in there]
    if not wanted:
        return images
    base = base_layer()
    with tempfile.TemporaryDirectory(prefix="olivine-images-") as name:
        scratch = Path(name)
        archive = scratch / "image.tar"
        # The large layer is carried once, by an image that also keeps it from being collected.
        carrier = f"olivine.local/base:{base.digest.removeprefix('sha256:')[:12]}"
        if carrier not in there:
            write_archive(archive, carrier, ImageConfig(("/bin/sh",), _ENV), [base])
            ctr(slot, "images", "import", archive)
        code = _code_layer(contents, scratch)
        for image in wanted:
            write_archive(archive, image.name, image.config, [base, code], present=[base])
            ctr(slot, "images", "import", archive)
            say(f"image {image.name} is on the node")
    return images


def load_pause(slot: Slot) -> None:
    """Brings the image that holds each pod's namespaces onto the node."""
    with tempfile.TemporaryDirectory(prefix="olivine-images-") as name:
        root = Path(name) / "root"
        root.mkdir()
        shutil.copy2(gobuild.kubernetes().build() / "pause", root / "pause")
        layer = write_layer(root, Path(name) / "layer.tar")
        archive = Path(name) / "image.tar"
        write_archive(archive, PAUSE_IMAGE, ImageConfig(("/pause",), user=f"{USER}:{USER}"), [layer])
        ctr(slot, "images", "import", archive)


def _on_node(slot: Slot) -> set[str]:
    return set(ctr(slot, "images", "list", "--quiet").split())


def _code() -> dict[str, bytes]:
    """The packages' files, by their path in the image."""
    found: dict[str, bytes] = {}
    for package in _PACKAGES:
        files = sources(package, "*")
        found.update({f"{package.name}/{path}": content for path, content in files.items() if "__pycache__" not in path})
    return found


def _code_layer(contents: Mapping[str, bytes], scratch: Path) -> Layer:
    root = scratch / "code"
    target = root / _CODE
    for path, content in contents.items():
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    target.mkdir(parents=True, exist_ok=True)
    # Without bytecode each start compiles anew; and with every time zero in the layer, it must not be checked by time.
    run([sys.executable, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/", target])
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return write_layer(root, scratch / "code.tar")
