"""The cgroup that a cluster's pods live under, in cgroup v1's many hierarchies or v2's one."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from devcluster.console import DevclusterError, say

_V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids", "hugetlb")


def create(name: str) -> None:
    """Makes the cgroup everywhere: kubelet wants its root to exist before it starts."""
    for hierarchy in _hierarchies():
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        # A cpuset is born without processors and memory in v1, and nothing may enter it so. (v2's root has no such files.)
        for setting in ("cpuset.mems", "cpuset.cpus"):
            file, above = group / setting, hierarchy / setting
            if file.exists() and above.exists() and not file.read_text().strip():
                file.write_text(above.read_text())
        offered = hierarchy / "cgroup.controllers"
        if offered.exists():
            names = [item for item in _V2_CONTROLLERS if item in offered.read_text().split()]
            for parent in (hierarchy, group):
                (parent / "cgroup.subtree_control").write_text(" ".join(f"+{item}" for item in names))


def delegated() -> dict[str, list[str]]:
    """The controllers that a v2 root hands down to the groups below it, by the root's path; nothing on v1."""
    files = {hierarchy: hierarchy / "cgroup.subtree_control" for hierarchy in _hierarchies()}
    return {str(hierarchy): file.read_text().split() for hierarchy, file in files.items() if file.exists()}


def restore_delegated(before: Mapping[str, Sequence[str]]) -> None:
    """Takes back the controllers that are handed down now and were not `before`; one that somebody else uses by now stays."""
    for root, now in delegated().items():
        for controller in now:
            if root in before and controller not in before[root]:
                try:
                    (Path(root) / "cgroup.subtree_control").write_text(f"-{controller}")
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    say(f"cgroup controller {controller} stays handed down by {root}: another group uses it by now")


def kill(name: str, *, seconds: float = 20.0) -> None:
    """Kills every process in the cgroup and below; returns when none is left."""
    deadline = time.monotonic() + seconds
    while left := _pids(name):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise DevclusterError(f"processes {sorted(left)} in cgroup {name} do not end, not even by SIGKILL; see /proc/PID/stack")
        time.sleep(0.05)


def remove(name: str, *, seconds: float = 10.0) -> None:
    """Removes the cgroup and all below it; the kernel may need a moment after the last process has gone."""
    deadline = time.monotonic() + seconds
    while True:
        left = [path for path in _groups(name) if not _remove(path)]
        if not left:
            return
        if time.monotonic() > deadline:
            raise DevclusterError(f"cgroup {left[0]} cannot be removed: is a process left in it? See its cgroup.procs")
        time.sleep(0.1)


def _remove(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _hierarchies() -> list[Path]:
    """Where cgroups are made: every v1 hierarchy, or the single v2 one."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    first = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup"]
    return first or [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]


def _groups(name: str) -> list[Path]:
    """The cgroup's folders, the deepest first. runc makes them in a hybrid system's v2 hierarchy too."""
    found: list[Path] = []
    for base in {*_hierarchies(), Path("/sys/fs/cgroup/unified")}:
        root = base / name
        if root.is_dir():
            found += [Path(folder) for folder, _, _ in os.walk(root, topdown=False)]
    return found


def _pids(name: str) -> set[int]:
    found: set[int] = set()
    for group in _groups(name):
        # A cgroup may go, or refuse to be read while it goes.
        with contextlib.suppress(OSError):
            found.update(int(line) for line in (group / "cgroup.procs").read_text().split())
    return found
