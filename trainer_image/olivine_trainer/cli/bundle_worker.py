"""The builder pod's child: builds, and leaves its end in a file for PID 1."""

import os
from pathlib import Path

from olivine_api.bundle_build import BuildResult, BuildTermination, BundleBuild
from olivine_api.exit_codes import Category, ExitCode
from olivine_api.reasons import Reason
from olivine_api.status import JobIdentity
from olivine_trainer.cgroup import find_memory_cgroup
from olivine_trainer.cli.bundle_files import MEMORY_ADVICE, read_build
from olivine_trainer.errors import InterruptedRunError, OutOfMemoryError, SupersededError, TrainerError
from olivine_trainer.faults import first_line, is_out_of_memory
from olivine_trainer.loop.stop import AskedToGo, StopFlag
from olivine_trainer.modeling.imports import import_training_stack
from olivine_trainer.reporting.build_board import BuildBoard, BuildFiles
from olivine_trainer.reporting.logs import LOGGER, fail, set_up_logging, warn
from olivine_trainer.reporting.termination import shorten

_UNKNOWN_FAILURE = 1


def work_on_build(folder: Path) -> int:
    """Build what PID 1 has left in `folder`; returns the exit code, and says the same in the end file."""
    build, identity = read_build(folder)
    set_up_logging(identity)
    files = BuildFiles(folder)
    board = BuildBoard(files, build.sequence, len(build.adapters))
    stop = StopFlag()
    try:
        stop.install()
        result = _build(build, identity, folder / "scratch", board)
        stop.ignore()
    except TrainerError as error:
        stop.ignore()
        return _end(files, board, error)
    except AskedToGo:
        return _end(
            files, board, InterruptedRunError("the pod was asked to go (SIGTERM): what is uploaded is taken up by the next")
        )
    except Exception as error:  # noqa: BLE001  (whatever it is, PID 1 must learn of it)
        stop.ignore()
        return _end_unforeseen(files, board, error)
    board.update(result=result)
    version = result.bundle.version if result.bundle is not None else 0
    files.write_end(BuildTermination(reason=Reason.PUBLISHED, message=f"version {version} is published", build=board.snapshot))
    return ExitCode.DONE


def _build(build: BundleBuild, identity: JobIdentity, scratch: Path, board: BuildBoard) -> BuildResult:
    import_training_stack()
    from olivine_trainer.bundle.pod import Told, build_in_pod  # noqa: PLC0415  (seconds)

    told = Told(
        stage=lambda stage: board.update(stage=stage),
        proven=lambda done, total: board.update(verified=len(build.adapters) - total + done),
    )
    return build_in_pod(build, identity, os.environ, scratch, told)


def _end(files: BuildFiles, board: BuildBoard, error: TrainerError) -> int:
    """Leave an understood end: one line, no traceback."""
    from olivine_trainer.bundle.assembly import AdaptersRejectedError  # noqa: PLC0415

    tell = warn if isinstance(error, SupersededError | InterruptedRunError) else fail
    tell(error.message, category=error.category, reason=error.reason)
    if isinstance(error, AdaptersRejectedError):
        board.update(result=BuildResult(adapters=error.adapters))
    files.write_end(
        BuildTermination(category=error.category, reason=error.reason, message=shorten(error.message), build=board.snapshot)
    )
    return error.exit_code


def _end_unforeseen(files: BuildFiles, board: BuildBoard, error: Exception) -> int:
    if is_out_of_memory(error):
        cgroup = find_memory_cgroup()
        measured = f" ({cgroup.describe()})" if cgroup is not None else ""
        return _end(files, board, OutOfMemoryError(f"{first_line(error)}{measured}", advice=MEMORY_ADVICE))
    LOGGER.exception("the builder failed")
    files.write_end(
        BuildTermination(
            category=Category.INFRASTRUCTURE,
            reason=Reason.INTERNAL_ERROR,
            message=shorten(f"{type(error).__name__}: {error}"),
            build=board.snapshot,
        )
    )
    return _UNKNOWN_FAILURE
