"""Long-running processes: started apart from the terminal, recorded, and stopped without ever hitting a stranger.

A record names the pid, the moment the kernel started it and the boot: a pid that was used again is not ours. Each process also
carries the place of its record in its environment, so that one whose starter was killed before it wrote the record is found.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster.console import DevclusterError
from devcluster.shell import tail

_POLL_SECONDS = 0.05
_MARK = "OLIVINE_DEVCLUSTER_RECORDS"


@dataclass(frozen=True)
class Daemon:
    """One recorded process."""

    name: str
    pid: int
    started: int
    boot: str
    log: str

    def alive(self) -> bool:
        """Whether this very process runs."""
        return self.boot == _boot() and start_time(self.pid) == self.started

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL; returns when the process is gone."""
        for signum, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
            if not self.alive():
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)
            deadline = time.monotonic() + seconds
            while self.alive() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        if self.alive():
            raise DevclusterError(f"{self.name} (pid {self.pid}) does not end, not even by SIGKILL; read {self.log}")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def start(name: str, argv: Sequence[str | Path], *, records: Path, log: Path, env: Mapping[str, str] | None = None) -> Daemon:
    """Starts a process in a session of its own, and records it in `records`."""
    records.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in argv]
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        words[0],
        words,
        {**(os.environ if env is None else env), _MARK: str(records)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), write, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inheritable()),
        ],
        setsid=True,
    )
    daemon = Daemon(name, pid, start_time(pid) or 0, _boot(), str(log))
    write_whole(records / f"{name}.json", json.dumps(asdict(daemon)))
    return daemon


def _inheritable() -> list[int]:
    """Descriptors that a child would keep, e.g. the lock of a `flock` that runs this command: it would hold it as long as it lives."""
    found: list[int] = []
    for descriptor in (int(path.name) for path in Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            if descriptor > 2 and os.get_inheritable(descriptor):
                found.append(descriptor)
    return found


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that nobody ever reads half of it."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    aside.replace(path)


def recorded(records: Path) -> dict[str, Daemon]:
    """The processes that were recorded, by name, whether or not they still live."""
    found: dict[str, Daemon] = {}
    for path in sorted(records.glob("*.json")):
        found[path.stem] = Daemon(**json.loads(path.read_text()))
    return found


def stop(records: Path, name: str, grace_seconds: float = 10.0) -> None:
    """Stops a recorded process and forgets it; a name without a record is nothing to stop."""
    daemon = recorded(records).get(name)
    if daemon is not None:
        daemon.stop(grace_seconds)
        (records / f"{name}.json").unlink()


def stop_strays(records: Path) -> None:
    """Ends the processes that were started for `records` and never recorded there: whoever started them was killed meanwhile.

    Their children carry the same mark; call this where none of them is to live on.
    """
    known = {daemon.pid for daemon in recorded(records).values() if daemon.alive()}
    mark = f"{_MARK}={records}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        began = start_time(pid)
        if began is not None and pid not in known and mark in _environment(folder):
            Daemon(f"unrecorded process {pid}", pid, began, _boot(), str(records)).stop(grace_seconds=0)


def _environment(folder: Path) -> list[bytes]:
    try:
        return (folder / "environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []  # gone, or somebody else's


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None where it is gone or only waits to be reaped."""
    try:
        # The command name may hold spaces and brackets: the fields that count come after its last bracket.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def wait_until(what: str, condition: Callable[[], bool], *, seconds: float, watch: Sequence[Daemon] = ()) -> None:
    """Waits for a condition; a deadline passed, or a watched process that ended, is one sentence and a log to read."""
    deadline = time.monotonic() + seconds
    while not condition():
        for daemon in watch:
            if not daemon.alive():
                raise DevclusterError(
                    f"{daemon.name} ended before {what}; read {daemon.log}, which ends:\n{tail(Path(daemon.log))}"
                )
        if time.monotonic() > deadline:
            logs = " and ".join(daemon.log for daemon in watch) or "the logs"
            raise DevclusterError(f"{what}: not so after {seconds:.0f} s; read {logs}")
        time.sleep(0.1)
