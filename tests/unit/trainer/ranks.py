"""Several ranks of one job as real processes, forked from one that has imported torch: what PID 1 would start, without its wait."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from olivine_api.status import Overrides, TerminationMessage
from olivine_trainer.cli.files import job_file, write_micro_batch
from olivine_trainer.reporting.board import WorkerFiles
from tests.unit.trainer.faulty import Fault

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.unit.trainer.warm"])


@dataclass
class Rank:
    """One worker, in a pod of its own unless it shares the folder."""

    rank: int
    folder: Path
    process: ForkServerProcess

    @property
    def log(self) -> str:
        return (self.folder / f"log-{self.rank}").read_text()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def code(self, seconds: float = 90) -> int:
        """Its exit code; negative for a signal."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"rank {self.rank} still ran after {seconds} s:\n{self.log}")
        return self.process.exitcode

    def end(self) -> TerminationMessage:
        """Its own word."""
        end = WorkerFiles(self.folder, self.rank).read_end()
        assert end is not None, self.log
        return end

    def wait_for(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log:
            assert self.process.is_alive(), self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)


@dataclass
class Ranks:
    """Starts the ranks of one run after another; `environ` reaches all of them."""

    folder: Path
    environ: Mapping[str, str]
    port: int = 0
    lives: int = 0

    def __post_init__(self) -> None:
        self.started: list[Rank] = []
        self.port = self.port or free_port()

    def start(
        self,
        job: Any,
        size: int = 2,
        *,
        only: Sequence[int] | None = None,
        faults: Mapping[int, Fault] | None = None,
        overrides: Mapping[int, Overrides] | None = None,
        one_pod: bool = False,
    ) -> list[Rank]:
        """All ranks, or `only` some, each with its fault."""
        self.lives += 1
        started: list[Rank] = []
        for rank in range(size) if only is None else only:
            folder = self.folder / f"life-{self.lives}" / ("pod" if one_pod else f"pod-{rank}")
            folder.mkdir(parents=True, exist_ok=True)
            job.save(job_file(folder))
            write_micro_batch(folder, (overrides or {}).get(rank))
            (folder / f"log-{rank}").touch()
            environ = {
                **self.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank if one_pod else 0),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.port),
                "OLIVINE_POD_NAME": f"tone-{rank}",
            }
            process = _FORKS.Process(target=_work, args=(folder, environ, (faults or {}).get(rank)), daemon=True)
            process.start()
            started.append(Rank(rank, folder, process))
        self.started += started
        return started

    def run(self, job: Any, size: int = 2, **settings: Any) -> list[Rank]:
        """All ranks, to their ends; all of them must end well."""
        ranks = self.start(job, size, **settings)
        codes = [rank.code() for rank in ranks]
        assert codes == [0] * size, "\n".join(rank.log for rank in ranks)
        return ranks

    def close(self) -> None:
        for rank in self.started:
            if rank.process.is_alive():
                rank.process.kill()
                rank.process.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(folder: Path, environ: dict[str, str], fault: Fault | None) -> None:
    os.environ.update(environ)
    log = os.open(folder / f"log-{environ['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    from olivine_trainer.cli.worker import work

    if fault is not None:
        fault()
    sys.exit(work(folder))
