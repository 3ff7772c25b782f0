"""One training process: claims the run, trains, and leaves its end in a file for the supervisor."""

import os
from datetime import UTC, datetime
from pathlib import Path

from olivine_api import names
from olivine_api.exit_codes import Category, ExitCode
from olivine_api.reasons import Reason
from olivine_api.status import TerminationMessage
from olivine_trainer.cli.files import job_file
from olivine_trainer.errors import InterruptedRunError, OutOfMemoryError, SupersededError, TrainerError
from olivine_trainer.faults import is_out_of_memory
from olivine_trainer.job import Job
from olivine_trainer.loop.claim import claim_run, fetch_sources, open_run
from olivine_trainer.loop.stop import AskedToGo, StopFlag
from olivine_trainer.reporting.board import Board, WorkerFiles
from olivine_trainer.reporting.logs import LOGGER, fail, log, set_up_logging, warn
from olivine_trainer.reporting.termination import shorten
from olivine_trainer.storage.records import Published

_UNKNOWN_FAILURE = 1


def work(folder: Path) -> int:
    """Train the job in `folder`; returns the exit code, and says the same in the end file."""
    files = WorkerFiles(folder, int(os.environ.get("RANK", "0")))
    job = Job.load(job_file(folder))
    set_up_logging(job.identity)
    stop = StopFlag()
    board = Board(files, pod=os.environ.get(names.ENV_POD_NAME, ""))
    try:
        stop.install()
        board.flush()
        published = _run(job, folder, board, stop)
    except TrainerError as error:
        return _end(files, board, error)
    except AskedToGo:
        return _end(files, board, InterruptedRunError("the pod was asked to go (SIGTERM) before training began: nothing is lost"))
    except Exception as error:  # noqa: BLE001  (whatever it is, the supervisor must learn of it)
        if (memory := _as_out_of_memory(error, board)) is not None:
            return _end(files, board, memory)
        LOGGER.exception("the trainer failed")
        message = shorten(f"{type(error).__name__}: {error}")
        _leave(files, board, TerminationMessage(category=Category.INFRASTRUCTURE, reason=Reason.INTERNAL_ERROR, message=message))
        return _UNKNOWN_FAILURE
    files.write_end(
        TerminationMessage(
            reason=Reason.PUBLISHED,
            message=f"published by attempt {published.attempt}",
            step=published.snapshot.progress.step,
            snapshot=published.snapshot,
        )
    )
    return ExitCode.DONE


def _run(job: Job, folder: Path, board: Board, stop: StopFlag) -> Published:
    records = open_run(job, os.environ)
    claim = claim_run(job, records, board)
    if isinstance(claim, Published):
        log(f"the run is over: attempt {claim.attempt} published it at {claim.published_at.isoformat()}")
        return claim
    sources = fetch_sources(job, os.environ, folder, board)
    from olivine_trainer.modeling.imports import import_training_stack  # noqa: PLC0415  (seconds: only once it is needed)

    log(f"imports took {import_training_stack():.1f} s")
    stop.check()
    from olivine_trainer.loop.train import train  # noqa: PLC0415

    return train(job, claim, sources, board=board, stop=stop, scratch=folder)


def _end(files: WorkerFiles, board: Board, error: TrainerError) -> int:
    """Leave an understood end: one line, no traceback."""
    tell = warn if isinstance(error, SupersededError | InterruptedRunError) else fail
    tell(error.message, category=error.category, reason=error.reason)
    step = error.step if error.step is not None else board.snapshot.progress.step
    message = TerminationMessage(category=error.category, reason=error.reason, message=shorten(error.message), step=step)
    _leave(files, board, message)
    return error.exit_code


def _leave(files: WorkerFiles, board: Board, message: TerminationMessage) -> None:
    board.flush()
    moved = board.snapshot.progress.model_copy(update={"last_update_time": datetime.now(UTC)})
    files.write_end(message.model_copy(update={"snapshot": board.snapshot.model_copy(update={"progress": moved})}))


def _as_out_of_memory(error: BaseException, board: Board) -> OutOfMemoryError | None:
    if not is_out_of_memory(error):
        return None
    first = (str(error).splitlines() or ["memory ran out"])[0]
    return OutOfMemoryError(shorten(first, 300), step=board.snapshot.progress.step)
