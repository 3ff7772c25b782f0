"""The machine's own settings that a node changes: noted by the first cluster, put back by the last."""

import json
import shutil
from pathlib import Path

from devcluster import cgroups
from devcluster.console import DevclusterError, say
from devcluster.paths import REGISTRY
from devcluster.processes import write_whole
from devcluster.shell import run

# kubelet writes the first three; the others are those that it would write under other settings.
_SYSCTLS = (
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/panic_on_oom",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
# The node mounts folders of its own over these, in its own mount namespace: the machine only has to have the places.
MOUNT_POINTS = (Path("/run/containerd"), Path("/var/lib/kubelet"), Path("/var/lib/cni"), Path("/var/log/containers"))
# Made by `ip netns`, as a mount on itself.
_NAMESPACES = Path("/run/netns")
_NOTE = REGISTRY / "machine.json"
_COMMANDS = {
    "containerd": "containerd", "runc": "runc", "ip": "iproute2", "iptables": "iptables",
    "conntrack": "conntrack", "nsenter": "util-linux", "debootstrap": "debootstrap",
}  # fmt: skip


def check() -> None:
    """Says in one sentence which Debian packages a node still needs."""
    missing = [package for command, package in _COMMANDS.items() if shutil.which(command) is None]
    if not Path("/usr/lib/cni/bridge").exists():
        missing.append("containernetworking-plugins")
    if missing:
        raise DevclusterError(f"the node needs Debian packages that are not here: apt-get install -y {' '.join(missing)}")


def remember() -> None:
    """Notes the settings, and makes the mount points that are not there."""
    made = [path for path in MOUNT_POINTS if not path.exists()]
    note = {
        "sysctls": {name: _sysctl(name).read_text().strip() for name in _SYSCTLS if _sysctl(name).exists()},
        "made": [str(path) for path in made],
        "had_namespaces": _NAMESPACES.exists(),
        "delegated": cgroups.delegated(),
    }
    write_whole(_NOTE, json.dumps(note, indent=1))
    for path in made:
        path.mkdir()


def restore() -> None:
    """Puts back what `remember` noted, and forgets it; without a note there is nothing to put back."""
    if not _NOTE.exists():
        return
    note = json.loads(_NOTE.read_text())
    for name, value in note["sysctls"].items():
        if _sysctl(name).read_text().strip() != value:
            _sysctl(name).write_text(value)
    cgroups.restore_delegated(note.get("delegated", {}))
    for path in map(Path, note["made"]):
        if path.exists() and any(path.iterdir()):
            say(f"{path} is kept: it was made for the cluster, and somebody has put files there since")
        elif path.exists():
            path.rmdir()
    if not note["had_namespaces"] and _NAMESPACES.exists() and not any(_NAMESPACES.iterdir()):
        if _NAMESPACES.is_mount() or str(_NAMESPACES) in Path("/proc/self/mountinfo").read_text().split():
            run(["umount", _NAMESPACES])
        _NAMESPACES.rmdir()
    _NOTE.unlink()


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name
