"""Trainer pods as their node sees them: processes that can be held and killed, and the log at the moment it is written.

What the API server tells of a pod is seconds old, and a short training is over in a few: a fault that has to hit a certain step
is aimed from here. A held worker (SIGSTOP) stays where it is, however long the test takes to look.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cluster import STATE, Cluster
from tests.support.wait import wait_for

# The end of a log that holds at least its last line: a line is a few hundred bytes.
_TAIL = 16 << 10


@dataclass(frozen=True)
class Process:
    """A process of a pod's container, as the host sees it."""

    pid: int
    first: bool
    """Whether it is PID 1 of its container."""

    def signal(self, number: int) -> bool:
        """Send a signal; False where the process is gone."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def stopped(self) -> bool:
        """Whether it is held, or gone."""
        return self._state() in "TtZX"

    def gone(self) -> bool:
        """Whether it has ended, reaped or not."""
        return self._state() in "ZX"

    def _state(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "X"


@dataclass(frozen=True)
class TrainerPod:
    """One trainer pod."""

    namespace: str
    name: str
    uid: str
    index: int

    @classmethod
    def of(cls, pod: dict[str, Any]) -> "TrainerPod":
        """From the API's object."""
        meta = pod["metadata"]
        index = meta.get("labels", {}).get("batch.kubernetes.io/job-completion-index", "0")
        return cls(namespace=meta["namespace"], name=meta["name"], uid=meta["uid"], index=int(index))

    def processes(self, program: bytes = b"olivine_trainer") -> list[Process]:
        """The processes whose command line names `program`. (The sandbox's own stays out: the pod is to fail, not its network.)"""
        return list(_processes(self.uid, program))

    def workers(self) -> list[Process]:
        """The training processes, without PID 1."""
        return [process for process in self.processes() if not process.first]

    def kill(self) -> int:
        """SIGKILLs every process, as a node's out-of-memory killer would; returns their number."""
        # PID 1 goes last: the kernel kills the others with it, and they could not be counted.
        return sum(process.signal(signal.SIGKILL) for process in sorted(self.processes(), key=lambda process: process.first))

    def log(self) -> list[dict[str, Any]]:
        """All lines of the trainer's log, parsed; those that are no JSON are left out."""
        file = self._log_file()
        return list(_parsed(file.read_bytes().splitlines(keepends=True))) if file is not None else []

    def tail(self) -> list[dict[str, Any]]:
        """The newest whole lines of the log."""
        file = self._log_file()
        if file is None:
            return []
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL))
            return list(_parsed(stream.read().splitlines(keepends=True)))

    def step(self) -> int:
        """The optimizer step that the log tells of; 0 before the first. (PID 1 and other threads may have said something since.)"""
        return next((int(line["step"]) for line in reversed(self.tail()) if "step" in line), 0)

    def _log_file(self) -> Path | None:
        file = STATE / "log" / "pods" / f"{self.namespace}_{self.name}_{self.uid}" / "trainer" / "0.log"
        return file if file.exists() else None


def _processes(uid: str, program: bytes) -> Iterator[Process]:
    marks = (uid, uid.replace("-", "_"))
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if program not in (entry / "cmdline").read_bytes():
                continue
            cgroup, status = (entry / "cgroup").read_text(), (entry / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        if any(mark in cgroup for mark in marks):
            inner = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
            yield Process(pid=int(entry.name), first=inner == "1")


def _parsed(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON in lines of the container runtime's form, `<time> <stream> F <text>`; a line that is being written is left out."""
    for line in lines:
        parts = line.split(b" ", 3)
        if len(parts) == 4 and line.endswith(b"\n") and parts[3].startswith(b"{"):
            with contextlib.suppress(ValueError):  # the first line of a tail may be half of one
                yield json.loads(parts[3])


@dataclass(frozen=True)
class Held:
    """A job whose workers stand still."""

    pods: tuple[TrainerPod, ...]
    """By index."""
    step: int
    """Where they stand."""

    @property
    def first(self) -> TrainerPod:
        """The pod with index 0."""
        return self.pods[0]

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let all go on; those that go on already are not disturbed."""
        for pod in self.pods:
            for process in pod.processes():
                process.signal(signal.SIGCONT)


def hold(cluster: Cluster, job: str, moment: Callable[[TrainerPod], bool], *, seconds: float = 240, pods: int = 1) -> Held:
    """Stops a job's workers at the first moment that `moment` says of the pod with index 0.

    Fails where the pods have ended before: what would follow could not be what the test is about.
    """
    deadline = time.monotonic() + seconds
    found = wait_for(f"{pods} running pods of {job}", lambda: _running(cluster, job, pods), seconds=seconds, every=0.5)
    first = found[0]
    inner = first.processes()
    while not moment(first):
        assert time.monotonic() < deadline, (
            f"{job}: the moment did not come within {seconds:.0f} s; {first.name} said {first.log()[-3:]}"
        )
        if all(process.gone() for process in inner if process.first):
            raise AssertionError(f"{job}: pod {first.name} ended before the moment came; it said last {first.log()[-3:]}")
        time.sleep(0.02)
    for pod in found:
        for process in pod.workers():
            process.signal(signal.SIGSTOP)
    stopped = wait_for("the workers stand", lambda: all(p.stopped() for pod in found for p in pod.workers()), seconds=10)
    assert stopped
    standing = [process for pod in found for process in pod.workers()]
    assert standing, f"{job}: the workers were gone when they were to be held; {first.name} said last {first.log()[-3:]}"
    return Held(pods=found, step=first.step())


def at_step(step: int) -> Callable[[TrainerPod], bool]:
    """The moment after optimizer step `step`, for hold(); needs training.loggingSteps 1 to be exact."""
    return lambda pod: pod.step() >= step


def _running(cluster: Cluster, job: str, count: int) -> tuple[TrainerPod, ...] | None:
    """The job's live pods by index, once there are `count` whose trainer runs."""
    alive = [pod for pod in cluster.pods(job) if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]]
    found = sorted((TrainerPod.of(pod) for pod in alive), key=lambda pod: pod.index)
    return tuple(found) if len(found) == count and all(pod.processes() for pod in found) else None
