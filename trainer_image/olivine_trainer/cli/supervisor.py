"""PID 1: starts the workers, passes signals on, posts the heartbeat, and says how it all ended. Imports no torch.

A worker leaves its newest snapshot and its end in files, so that even one that was killed has a final word.
"""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from olivine_api import names
from olivine_api.exit_codes import Category, ExitCode
from olivine_api.reasons import Reason
from olivine_api.status import Progress, Snapshot, Stage, TerminationMessage
from olivine_trainer.cli.cgroup import MemoryCgroup, find_memory_cgroup
from olivine_trainer.cli.environment import find_scratch, worker_environment
from olivine_trainer.cli.files import job_file
from olivine_trainer.early_signals import EarlySignals
from olivine_trainer.errors import TrainerError
from olivine_trainer.job import Job
from olivine_trainer.reporting.board import WorkerFiles
from olivine_trainer.reporting.logs import fail, set_up_logging
from olivine_trainer.reporting.poster import Endpoint, Poster
from olivine_trainer.reporting.termination import shorten, write_termination

_KILLED = 1  # not 137: that would read as if the container itself had been killed
_POLL = 0.5  # seconds
_PROCESSES = 1  # one device in this release


@dataclass(frozen=True)
class End:
    """How a run of this pod ended."""

    code: int
    message: TerminationMessage


def supervise(job: Job, termination_log: Path = Path(names.TERMINATION_LOG), *, early: EarlySignals | None = None) -> int:
    """Train `job` in worker processes; returns the exit code and leaves the termination message.

    `early` has the signals that came before.
    """
    set_up_logging(job.identity)
    scratch = find_scratch()
    # One folder a container: a restarted one must not read what its predecessor left.
    folder = scratch.folder / f"run-{os.getpid()}-{int(datetime.now(UTC).timestamp() * 1000)}"
    folder.mkdir()
    try:
        return _run_worker(job, folder, termination_log, early or EarlySignals())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if scratch.temporary:
            shutil.rmtree(scratch.folder, ignore_errors=True)


def fail_before_start(error: TrainerError, termination_log: Path = Path(names.TERMINATION_LOG)) -> int:
    """The end of a job that could not even be read."""
    set_up_logging(None)
    fail(error.message, category=error.category, reason=error.reason)
    message = TerminationMessage(category=error.category, reason=error.reason, message=shorten(error.message))
    write_termination(message, termination_log)
    return error.exit_code


def _run_worker(job: Job, folder: Path, termination_log: Path, early: EarlySignals) -> int:
    job.save(job_file(folder))
    files = WorkerFiles(folder, rank=int(os.environ.get("RANK", "0")))
    cgroup = find_memory_cgroup()
    kills_before = cgroup.oom_kills() if cgroup else 0
    terminated = _Forwarder(early)
    poster = _poster(job, files)
    worker = subprocess.Popen(
        [sys.executable, "-m", "olivine_trainer", "worker", str(folder)],
        env=worker_environment(os.environ, folder, local_rank=0, processes=_PROCESSES),
    )
    terminated.attach(worker)
    try:
        if poster is not None:
            poster.start()
        code = _wait(worker)
        end = judge(code, files, cgroup, kills_before=kills_before, asked_to_go=terminated.asked)
        write_termination(end.message, termination_log)  # first of all: the last POST may take its time
        return end.code
    finally:
        # Normally it is gone; an error of ours must not leave it behind.
        if worker.poll() is None:
            worker.kill()
            worker.wait()
        if poster is not None:
            poster.stop()


def judge(code: int, files: WorkerFiles, cgroup: MemoryCgroup | None, *, kills_before: int, asked_to_go: bool) -> End:
    """The pod's end from the worker's: its own words where it left any, else what its death tells.

    `code` as subprocess has it: negative for a signal.
    """
    end, snapshot = files.read_end(), files.read_snapshot()
    if end is not None and code >= 0:
        return End(code, end)
    step = snapshot.progress.step if snapshot is not None else None
    if code == -signal.SIGKILL and cgroup is not None and cgroup.oom_kills() > kills_before:
        message = (
            f"the training process was killed for memory ({cgroup.describe()}): lower training.batchSize and raise"
            " training.gradientAccumulationSteps by the same factor, lower data.maxLength, or raise pods.resources.limits.memory"
        )
        reason, exit_code = Reason.OUT_OF_MEMORY, int(ExitCode.OUT_OF_MEMORY)
    elif code in (-signal.SIGTERM, -signal.SIGINT) and asked_to_go:
        message, reason, exit_code = "the pod was asked to go before training began", Reason.INTERRUPTED, int(ExitCode.INTERRUPTED)
    elif code < 0:
        message = f"the training process was killed by {signal.Signals(-code).name}"
        reason, exit_code = Reason.POD_FAILED, _KILLED
    else:
        message = f"the training process ended with exit code {code} and left no word"
        reason, exit_code = Reason.POD_FAILED, code or _KILLED
    fail(message, reason=reason)
    told = TerminationMessage(category=Category.INFRASTRUCTURE, reason=reason, message=message, step=step, snapshot=snapshot)
    return End(exit_code, told)


class _Forwarder:
    """SIGTERM and SIGINT go on to the worker, which saves and ends by itself."""

    def __init__(self, early: EarlySignals) -> None:
        self.asked = False
        self._worker: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # Read once ours stand: a signal in between reaches one or the other.
        self.asked = self.asked or early.asked

    def attach(self, worker: "subprocess.Popen[bytes]") -> None:
        """From here on signals reach the worker; one that came before does so now."""
        self._worker = worker
        if self.asked:
            worker.send_signal(signal.SIGTERM)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and self._worker is not None:
            self._worker.send_signal(signal.SIGTERM)


def _wait(worker: "subprocess.Popen[bytes]") -> int:
    while True:
        try:
            return worker.wait(timeout=_POLL)
        except subprocess.TimeoutExpired:
            continue  # a wait without a timeout would hold signals back on some platforms


def _poster(job: Job, files: WorkerFiles) -> Poster | None:
    url = os.environ.get(names.ENV_STATUS_URL)
    if not url:
        return None
    pod = os.environ.get(names.ENV_POD_NAME, "")

    def newest() -> Snapshot:
        """The worker's snapshot, its end's where it has ended; the time is PID 1's, which lives while a step is long."""
        end = files.read_end()
        known = (end.snapshot if end is not None else None) or files.read_snapshot()
        known = known or Snapshot(pod=pod, progress=Progress(stage=Stage.STARTING))
        now = known.progress.model_copy(update={"last_update_time": datetime.now(UTC)})
        return known.model_copy(update={"progress": now, "pod": pod or known.pod})

    return Poster(Endpoint(url=url, identity=job.identity), newest)
