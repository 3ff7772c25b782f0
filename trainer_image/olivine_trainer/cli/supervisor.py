"""PID 1: starts the workers, starts them again where they lost a peer, and leaves the pod's end. Imports no torch.

A worker leaves its newest snapshot and its end in files, so that even one that was killed has a final word.
"""

import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from olivine_api import names
from olivine_api.status import Progress, Snapshot, Stage, TerminationMessage
from olivine_trainer.cgroup import MemoryCgroup, find_memory_cgroup
from olivine_trainer.cli.environment import find_scratch, worker_environment
from olivine_trainer.cli.files import job_file, sweep, write_micro_batch
from olivine_trainer.cli.manifest import Surroundings
from olivine_trainer.cli.placement import Placement
from olivine_trainer.cli.restarts import Restarts
from olivine_trainer.cli.team import Forwarder, Team
from olivine_trainer.cli.verdict import End, decide
from olivine_trainer.early_signals import EarlySignals
from olivine_trainer.errors import TrainerError
from olivine_trainer.job import Job
from olivine_trainer.reporting.board import WorkerFiles
from olivine_trainer.reporting.logs import fail, set_up_logging, warn
from olivine_trainer.reporting.poster import Endpoint, Poster
from olivine_trainer.reporting.termination import shorten, write_termination


def supervise(
    job: Job,
    surroundings: Surroundings,
    termination_log: Path = Path(names.TERMINATION_LOG),
    *,
    early: EarlySignals | None = None,
) -> int:
    """Train `job` in worker processes; returns the exit code and leaves the termination message.

    `early` has the signals that came before.
    """
    set_up_logging(job.identity)
    scratch = find_scratch()
    # One folder a container: a restarted one must not read what its predecessor left.
    folder = scratch.folder / f"run-{os.getpid()}-{int(datetime.now(UTC).timestamp() * 1000)}"
    folder.mkdir()
    try:
        return _Supervisor(job, surroundings, folder, early or EarlySignals()).run(termination_log)
    except TrainerError as error:
        return _leave(error, termination_log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if scratch.temporary:
            shutil.rmtree(scratch.folder, ignore_errors=True)


def fail_before_start(error: TrainerError, termination_log: Path = Path(names.TERMINATION_LOG)) -> int:
    """The end of a job that could not even be read."""
    set_up_logging(None)
    return _leave(error, termination_log)


def _leave(error: TrainerError, termination_log: Path) -> int:
    """The end of a pod without workers."""
    fail(error.message, category=error.category, reason=error.reason)
    message = TerminationMessage(category=error.category, reason=error.reason, message=shorten(error.message))
    write_termination(message, termination_log)
    return error.exit_code


class _Supervisor:
    """One pod's life: one or more lives of its workers."""

    def __init__(self, job: Job, surroundings: Surroundings, folder: Path, early: EarlySignals) -> None:
        self._job = job
        self._surroundings = surroundings
        self._folder = folder
        self._cgroup = find_memory_cgroup()
        self._forwarder = Forwarder(early)

    def run(self, termination_log: Path) -> int:
        """The exit code, once the termination message is left."""
        self._job.save(job_file(self._folder))
        placement = self._place()
        if placement.leads and placement.world.pods < self._job.spec.pods.count:
            told = "fewer pods than pods.count: a new run's optimizer step has as many rows fewer"
            warn(told, pods=placement.world.pods, podsCount=self._job.spec.pods.count)
        poster = _poster(self._job, WorkerFiles(self._folder, 0)) if placement.leads else None
        try:
            if poster is not None:
                poster.start()
            end = self._live(placement)
            write_termination(end.message, termination_log)  # first of all: the last POST may take its time
            return end.code
        finally:
            if poster is not None:
                poster.stop()

    def _place(self) -> Placement:
        return Placement.find(self._surroundings.world(), os.environ)

    def _live(self, placement: Placement) -> End:
        """Until the end of a life that is not to be repeated here."""
        restarts = Restarts()
        while True:
            end = self._live_once(placement)
            if self._forwarder.asked or not restarts.allow(end.code, self._newest_checkpoint(placement)):
                return end
            warn(f"{end.message.message}: the workers of this pod start again", restart=restarts.count)
            placement = self._place()  # how many pods there are, and the micro-batch, may be others now

    def _live_once(self, placement: Placement) -> End:
        sweep(self._folder)
        write_micro_batch(self._folder, self._surroundings.overrides())
        team = self._start(placement)
        self._forwarder.attach(team)
        try:
            deaths = team.wait()
        finally:
            team.kill()
        return decide(
            deaths,
            {rank: WorkerFiles(self._folder, rank) for rank in placement.ranks},
            leads=placement.leads,
            memory=in_words(self._cgroup),
            asked_to_go=self._forwarder.asked,
        )

    def _start(self, placement: Placement) -> Team:
        command = [sys.executable, "-m", "olivine_trainer", "worker", str(self._folder)]
        port = placement.meeting_port()
        environments = {
            rank: worker_environment(os.environ, self._folder, placement, rank=rank, port=port) for rank in placement.ranks
        }
        return Team.start(dict.fromkeys(placement.ranks, command), environments, self._cgroup)

    def _newest_checkpoint(self, placement: Placement) -> int | None:
        snapshots = [WorkerFiles(self._folder, rank).read_snapshot() for rank in placement.ranks]
        return max((one.checkpoint.step for one in snapshots if one is not None and one.checkpoint is not None), default=None)


def in_words(cgroup: MemoryCgroup | None) -> str:
    """What is known of the memory's use."""
    return cgroup.describe() if cgroup is not None else "peak unknown"


def _poster(job: Job, files: WorkerFiles) -> Poster | None:
    url = os.environ.get(names.ENV_STATUS_URL)
    if not url:
        return None
    pod = os.environ.get(names.ENV_POD_NAME, "")

    def newest() -> Snapshot:
        """Rank 0's snapshot, its end's where it has ended; the time is PID 1's, which lives while a step is long."""
        end = files.read_end()
        known = (end.snapshot if end is not None else None) or files.read_snapshot()
        known = known or Snapshot(pod=pod, progress=Progress(stage=Stage.STARTING))
        now = known.progress.model_copy(update={"last_update_time": datetime.now(UTC)})
        return known.model_copy(update={"progress": now, "pod": pod or known.pod})

    return Poster(Endpoint(url=url, identity=job.identity), newest)
