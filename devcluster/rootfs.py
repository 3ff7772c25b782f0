"""The images' base layer: a minimal Debian of the host's release with its Python, made by debootstrap.

The release is the host's own because the Python environment, which pods mount, was installed for the host's Python.
"""

import os
import platform
import shutil
from pathlib import Path

from devcluster import oci
from devcluster.cache import Recipe
from devcluster.console import DevclusterError
from devcluster.shell import run

# What the environment's compiled modules load from the system.
_PACKAGES = ("python3", "ca-certificates", "libgomp1", "libstdc++6")
_DROPPED = (
    "var/lib/apt/lists", "var/cache", "var/log", "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale",
    "usr/share/lintian", "usr/share/i18n", "usr/share/bash-completion", "var/lib/dpkg/info", "etc/machine-id", "etc/resolv.conf", "etc/hostname",
)  # fmt: skip
USER = 65532
_LAYER, _DIGEST = "layer.tar", "digest"


def rootfs() -> Recipe:
    """A folder with the base layer as a tar."""
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    parts = {
        "suite": f"{suite} {platform.machine()}".encode(),
        "code": Path(__file__).read_bytes(),
        "tar": Path(oci.__file__).read_bytes(),
    }
    return Recipe("rootfs", parts, lambda folder, log: _make(suite, folder, log), "about 1 minute")


def base_layer() -> oci.Layer:
    """The base layer, built where it is not there yet."""
    folder = rootfs().build()
    path = folder / _LAYER
    return oci.Layer(path, (folder / _DIGEST).read_text(), path.stat().st_size)


def _make(suite: str, folder: Path, log: Path) -> None:
    if os.geteuid() != 0:
        raise DevclusterError(
            "the images' base layer is made by debootstrap, which needs root: run this as root, or use --control-plane-only"
        )
    root = folder / "root"
    mirror = _mirror(suite)
    # What it mounts and starts must go with it, however it ends.
    alone = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--"]
    words = ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", suite, root, *([mirror] if mirror else [])]
    run([*alone, *words], log=log)
    for name in _DROPPED:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in ("opt/olivine/code", "opt/olivine/venv", "var/log", "var/cache"):
        (root / name).mkdir(parents=True, exist_ok=True)
    # torch asks the user database for a name, and fails on a user id that has none.
    with (root / "etc/passwd").open("a") as users:
        users.write(f"olivine:x:{USER}:{USER}:Olivine:/tmp:/usr/sbin/nologin\n")
    with (root / "etc/group").open("a") as groups:
        groups.write(f"olivine:x:{USER}:\n")
    # All times become zero in the layer, so bytecode must not be checked against them; a pod could not write it anew.
    compiler = ["python3", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
    libraries = [f"/{path.relative_to(root)}" for path in sorted((root / "usr/lib").glob("python3*"))]
    run(["chroot", root, *compiler, *libraries], log=log)
    layer = oci.write_layer(root, folder / _LAYER)
    (folder / _DIGEST).write_text(layer.digest)
    shutil.rmtree(root)


def _mirror(suite: str) -> str:
    """The mirror that this machine's apt uses for its release; empty leaves it to debootstrap's own default."""
    listed = run(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"])
    found = (line.split()[1] for line in listed.splitlines() if line.split()[:1] == [suite])
    return next(found, "")
