"""What the kernel's memory controller (cgroup v1 and v2) tells of this container."""

from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryCgroup:
    """The files of this process's memory cgroup; both versions speak through the same three numbers."""

    events: Path
    limit: Path
    peak: Path

    def oom_kills(self) -> int:
        """Processes that the kernel has killed here for memory."""
        for line in self.events.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def describe(self) -> str:
        """The measured peak and the limit, for a sentence."""
        peak, limit = _bytes(self.peak), _bytes(self.limit)
        return f"peak {_mebibytes(peak)}, limit {_mebibytes(limit)}"


def find_memory_cgroup(root: Path = _ROOT, own: Path = _SELF) -> MemoryCgroup | None:
    """This process's memory cgroup, or None where the kernel shows none.

    A container sees its own cgroup at the root of the mount, a bare process below it at the path in /proc/self/cgroup.
    """
    if not own.exists():
        return None
    paths: dict[str, str] = {}
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if controllers else [""]:
            paths[controller] = path.lstrip("/")
    for folder in _places(root / "memory", paths.get("memory")):
        if (folder / "memory.oom_control").exists():
            return MemoryCgroup(
                events=folder / "memory.oom_control",
                limit=folder / "memory.limit_in_bytes",
                peak=folder / "memory.max_usage_in_bytes",
            )
    for folder in _places(root, paths.get("")):
        if (folder / "memory.events").exists():
            return MemoryCgroup(events=folder / "memory.events", limit=folder / "memory.max", peak=folder / "memory.peak")
    return None


def _places(mount: Path, path: str | None) -> tuple[Path, ...]:
    return (mount,) if path is None else (mount / path, mount)


def _bytes(path: Path) -> int | None:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else None


def _mebibytes(value: int | None) -> str:
    unlimited = 1 << 60  # cgroup v1 says "no limit" by a number near 2^63
    return "unknown" if value is None or value >= unlimited else f"{value >> 20} MiB"
