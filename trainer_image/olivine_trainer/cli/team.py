"""The worker processes of this pod, from their start to the end of the last: whoever outlives another for long is ended."""

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

from olivine_trainer.cgroup import MemoryCgroup
from olivine_trainer.early_signals import EarlySignals
from olivine_trainer.reporting.logs import warn

_POLL = 0.2  # seconds
ASK_AFTER = 10.0  # seconds that the others have to notice by themselves that one is gone
KILL_AFTER = 120.0  # seconds more, for an upload that is under way


@dataclass(frozen=True)
class Death:
    """How one worker ended."""

    rank: int
    code: int
    """As subprocess has it: negative for a signal."""
    for_memory: bool = False
    """The kernel killed it because memory had run out."""
    by_us: bool = False
    """It was killed because another one had ended."""


class Team:
    """Running workers by their ranks."""

    def __init__(
        self,
        workers: "Mapping[int, subprocess.Popen[bytes]]",
        cgroup: MemoryCgroup | None,
        *,
        ask_after: float = ASK_AFTER,
        kill_after: float = KILL_AFTER,
    ) -> None:
        self._alive = dict(workers)
        self._cgroup = cgroup
        self._kills = self._oom_kills()
        self._ask_after = ask_after
        self._kill_after = kill_after
        self._asked = False
        self._killed = False

    @classmethod
    def start(
        cls, commands: Mapping[int, Sequence[str]], environments: Mapping[int, Mapping[str, str]], cgroup: MemoryCgroup | None
    ) -> "Team":
        """One process a rank."""
        workers: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for rank, command in commands.items():
                workers[rank] = subprocess.Popen(command, env=environments[rank])
        except BaseException:
            for worker in workers.values():
                worker.kill()
            raise
        return cls(workers, cgroup)

    def send(self, number: int) -> None:
        """A signal to each worker that lives."""
        for worker in list(self._alive.values()):
            worker.send_signal(number)

    def wait(self) -> list[Death]:
        """Every worker's end, in the order in which they were seen."""
        deaths: list[Death] = []
        first = 0.0
        while self._alive:
            self._pause()
            deaths += (fallen := self._fallen())
            now = time.monotonic()
            if fallen and len(fallen) == len(deaths):
                first = now
            if deaths and self._alive:
                self._see_to(now - first)
        return deaths

    def kill(self) -> None:
        """An error of ours must leave nobody behind."""
        for worker in self._alive.values():
            worker.kill()
            worker.wait()
        self._alive.clear()

    def _pause(self) -> None:
        with suppress(subprocess.TimeoutExpired):  # a wait without a timeout would hold signals back on some platforms
            next(iter(self._alive.values())).wait(timeout=_POLL)

    def _fallen(self) -> list[Death]:
        deaths: list[Death] = []
        for rank, worker in list(self._alive.items()):
            if (code := worker.poll()) is not None:
                del self._alive[rank]
                killed = code == -signal.SIGKILL
                deaths.append(Death(rank, code, for_memory=killed and self._for_memory(), by_us=killed and self._killed))
        return deaths

    def _for_memory(self) -> bool:
        before, self._kills = self._kills, self._oom_kills()
        return self._kills > before

    def _oom_kills(self) -> int:
        return self._cgroup.oom_kills() if self._cgroup is not None else 0

    def _see_to(self, seconds: float) -> None:
        """The workers that are left, so many seconds after the first end."""
        left = ", ".join(str(rank) for rank in self._alive)
        if not self._asked and seconds > self._ask_after:
            self._asked = True
            warn(f"rank {left} did not end with the others: it is asked to")
            self.send(signal.SIGTERM)
        elif not self._killed and seconds > self._ask_after + self._kill_after:
            self._killed = True
            warn(f"rank {left} does not end: it is killed")
            self.send(signal.SIGKILL)


class Forwarder:
    """SIGTERM and SIGINT go on to the workers, which save and end by themselves."""

    def __init__(self, early: EarlySignals) -> None:
        self.asked = False
        """Whether the pod was asked to go."""
        self._team: Team | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # Read once ours stand: a signal in between reaches one or the other.
        self.asked = self.asked or early.asked

    def attach(self, team: Team) -> None:
        """From here on signals reach these workers; one that came before does so now."""
        self._team = team
        if self.asked:
            team.send(signal.SIGTERM)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and self._team is not None:
            self._team.send(signal.SIGTERM)
