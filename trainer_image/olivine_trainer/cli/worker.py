"""One training process: claims the run, trains, and leaves its end in a file for the supervisor."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from olivine_api import names
from olivine_api.exit_codes import Category, ExitCode
from olivine_api.methods import MethodType
from olivine_api.reasons import Reason
from olivine_api.status import TerminationMessage
from olivine_trainer.cgroup import find_memory_cgroup
from olivine_trainer.cli.files import job_file, read_micro_batch
from olivine_trainer.cli.gathering import RunIsOverError, gather_ranks
from olivine_trainer.errors import (
    GateUnmetError,
    InterruptedRunError,
    OutOfMemoryError,
    PeerLostError,
    SupersededError,
    TrainerError,
)
from olivine_trainer.faults import is_out_of_memory
from olivine_trainer.job import Job
from olivine_trainer.loop.claim import claim_run, fetch_sources, open_run
from olivine_trainer.loop.sources import sources_of_all
from olivine_trainer.loop.stop import AskedToGo, StopFlag
from olivine_trainer.reporting.board import Board, WorkerFiles
from olivine_trainer.reporting.logs import LOGGER, fail, log, set_up_logging, warn
from olivine_trainer.reporting.termination import shorten
from olivine_trainer.storage.records import Published, RunRecords
from olivine_trainer.world.place import Place
from olivine_trainer.world.world import World

_UNKNOWN_FAILURE = 1


def work(folder: Path) -> int:
    """Train the job in `folder`; returns the exit code, and says the same in the end file."""
    place = Place.from_environment(os.environ)
    files = WorkerFiles(folder, place.rank)
    job = Job.load(job_file(folder))
    set_up_logging(job.identity)
    board = Board(files, pod=os.environ.get(names.ENV_POD_NAME, ""))
    code = _Worker(job, place, folder, files, board).work()
    if place.size > 1:
        _exit(code)  # torch would wait for peers that are gone
    return code


class _Worker:
    """One process's work, and every way in which it may end."""

    def __init__(self, job: Job, place: Place, folder: Path, files: WorkerFiles, board: Board) -> None:
        self._job = job
        self._place = place
        self._folder = folder
        self._files = files
        self._board = board
        self._world = World(place)
        self._records: RunRecords | None = None

    def work(self) -> int:
        stop = StopFlag()
        try:
            stop.install()
            self._board.flush()
            published = self._run(stop)
            stop.ignore()
        except RunIsOverError as over:
            stop.ignore()
            published = over.published
        except PeerLostError as error:
            stop.ignore()
            over = self._published()
            if over is None:
                return self._end(error)
            published = over
        except TrainerError as error:
            stop.ignore()
            return self._end(error)
        except AskedToGo:
            return self._end(
                InterruptedRunError("the pod was asked to go (SIGTERM) before training began: nothing is lost"),
            )
        except Exception as error:  # noqa: BLE001  (whatever it is, the supervisor must learn of it)
            stop.ignore()
            return self._end_unforeseen(error)
        return self._end_published(published)

    def _end_published(self, published: Published) -> int:
        """The run's end, as it is recorded; where gates kept the artifact back, the first pod alone tells: one failure, with all numbers."""
        self._world.leave()
        snapshot = published.snapshot
        if published.unmet and self._place.rank == self._place.local_rank:
            uri = snapshot.artifacts[0].uri if snapshot.artifacts else None
            error = GateUnmetError(published.unmet, uri, step=snapshot.progress.step)
            fail(error.message, category=error.category, reason=error.reason)
            self._files.write_end(
                TerminationMessage(
                    category=error.category,
                    reason=error.reason,
                    message=shorten(error.message),
                    step=error.step,
                    attempt=published.attempt,
                    snapshot=snapshot,
                )
            )
            return error.exit_code
        self._files.write_end(
            TerminationMessage(
                reason=Reason.PUBLISHED,
                message=f"published by attempt {published.attempt}",
                step=published.snapshot.progress.step,
                attempt=published.attempt,
                snapshot=published.snapshot,
            )
        )
        return ExitCode.DONE

    def _run(self, stop: StopFlag) -> Published:
        job, board = self._job, self._board
        records = self._records = open_run(job, os.environ)
        world = self._world = gather_ranks(job, self._place, records, self._end_abruptly)
        claim = claim_run(job, records, board, world)
        if isinstance(claim, Published):
            log(f"the run is over: attempt {claim.attempt} ended it at {claim.published_at.isoformat()}")
            return claim
        sources = sources_of_all(
            lambda: fetch_sources(job, os.environ, self._folder, board, records.commits()), self._folder, world
        )
        from olivine_trainer.modeling.imports import import_training_stack  # noqa: PLC0415  (seconds: only once it is needed)

        quantized = job.spec.method.type is MethodType.QLORA
        log(f"imports took {import_training_stack(quantized=quantized):.1f} s")
        stop.check()
        world.start_group()
        from olivine_trainer.loop.train import train  # noqa: PLC0415

        scratch = self._folder / f"rank-{self._place.rank}"
        micro_batch = read_micro_batch(self._folder)
        return train(job, claim, sources, board=board, stop=stop, scratch=scratch, world=world, micro_batch=micro_batch)

    def _published(self) -> Published | None:
        """The run's end, where a peer has gone because it is over."""
        try:
            return self._records.published() if self._records is not None else None
        except TrainerError as error:
            warn(f"whether the run is over cannot be read: {error.message}")
            return None

    def _end(self, error: TrainerError) -> int:
        """Leave an understood end: one line, no traceback."""
        tell = warn if isinstance(error, SupersededError | InterruptedRunError | PeerLostError) else fail
        tell(error.message, category=error.category, reason=error.reason)
        step = error.step if error.step is not None else self._board.snapshot.progress.step
        self._leave(
            TerminationMessage(category=error.category, reason=error.reason, message=shorten(error.message), step=step),
        )
        return error.exit_code

    def _end_unforeseen(self, error: Exception) -> int:
        step = self._board.snapshot.progress.step
        if is_out_of_memory(error):
            first = (str(error).splitlines() or ["memory ran out"])[0]
            cgroup = find_memory_cgroup()
            measured = f" ({cgroup.describe()})" if cgroup is not None else ""
            return self._end(OutOfMemoryError(f"{shorten(first, 300)}{measured}", step=step))
        LOGGER.exception("the trainer failed")
        message = shorten(f"{type(error).__name__}: {error}")
        self._leave(
            TerminationMessage(category=Category.INFRASTRUCTURE, reason=Reason.INTERNAL_ERROR, message=message, step=step),
        )
        return _UNKNOWN_FAILURE

    def _leave(self, message: TerminationMessage) -> None:
        self._world.leave()
        self._board.flush()
        snapshot = self._board.snapshot
        moved = snapshot.progress.model_copy(update={"last_update_time": datetime.now(UTC)})
        known = {"attempt": snapshot.attempt or None, "snapshot": snapshot.model_copy(update={"progress": moved})}
        self._files.write_end(message.model_copy(update=known))
        if message.reason != Reason.PEER_LOST:  # an echo would hide whose fault it was
            self._world.explain(f"{message.reason}: {shorten(message.message, 300)}")

    def _end_abruptly(self, lost: PeerLostError) -> None:
        """From the thread that watches: the main one hangs in a collective."""
        _exit(self._end(lost))


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
