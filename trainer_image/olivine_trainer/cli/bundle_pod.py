"""PID 1 of a builder pod: builds in a child process, reports while it lives, and leaves the pod's end. Imports no torch."""

import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from olivine_api import names
from olivine_api.bundle_build import BuildSnapshot, BuildStage, BuildTermination, BundleBuild
from olivine_api.exit_codes import Category
from olivine_api.status import JobIdentity, World
from olivine_trainer.cgroup import find_memory_cgroup
from olivine_trainer.cli.bundle_files import MEMORY_ADVICE, write_build
from olivine_trainer.cli.environment import find_scratch, worker_environment
from olivine_trainer.cli.placement import Placement
from olivine_trainer.cli.supervisor import in_words
from olivine_trainer.cli.team import Death, Forwarder, Team
from olivine_trainer.cli.verdict import silent_end
from olivine_trainer.early_signals import EarlySignals
from olivine_trainer.reporting.build_board import BuildFiles
from olivine_trainer.reporting.build_report import fit_snapshot, fit_termination
from olivine_trainer.reporting.logs import fail, set_up_logging, warn
from olivine_trainer.reporting.poster import Endpoint, Poster
from olivine_trainer.reporting.termination import leave

_INSIST_SECONDS = 60  # on the result: with the pod goes the best way to tell it


def supervise_build(
    build: BundleBuild,
    identity: JobIdentity,
    termination_log: Path = Path(names.TERMINATION_LOG),
    *,
    early: EarlySignals | None = None,
) -> int:
    """Build in a child process; returns the exit code and leaves the termination message. `early` has the signals that came before."""
    set_up_logging(identity)
    scratch = find_scratch()
    folder = scratch.folder / f"build-{os.getpid()}-{int(datetime.now(UTC).timestamp() * 1000)}"
    folder.mkdir()
    write_build(folder, build, identity)
    files, forwarder = BuildFiles(folder), Forwarder(early or EarlySignals())
    poster = _poster(build, identity, files)
    try:
        if poster is not None:
            poster.start()
        code, end = _live(files, forwarder)
        leave(fit_termination(end), termination_log)  # first of all: the last POST may take its time
        if poster is not None:
            poster.stop()
            told = end.build is not None and end.build.result is not None
            if told and not poster.insist(_INSIST_SECONDS, given_up=lambda: forwarder.asked):
                warn("the operator has not taken the result: it reads the termination message, or asks the next pod")
        return code
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if scratch.temporary:
            shutil.rmtree(scratch.folder, ignore_errors=True)


def _live(files: BuildFiles, forwarder: Forwarder) -> tuple[int, BuildTermination]:
    cgroup = find_memory_cgroup()
    placement = Placement.find(World(), {})
    environment = worker_environment(os.environ, files.folder, placement, rank=0, port=placement.meeting_port())
    command = [sys.executable, "-m", "olivine_trainer", "bundle", "worker", str(files.folder)]
    team = Team.start({0: command}, {0: environment}, cgroup)
    forwarder.attach(team)
    try:
        (death,) = team.wait()
    finally:
        team.kill()
    end = files.read_end()
    if end is not None and death.code >= 0:
        return death.code, end
    return _silent(death, files, memory=in_words(cgroup), asked=forwarder.asked)


def _silent(death: Death, files: BuildFiles, *, memory: str, asked: bool) -> tuple[int, BuildTermination]:
    code, reason, message = silent_end(death, "building", memory=memory, advice=MEMORY_ADVICE, asked_to_go=asked)
    fail(message, reason=reason)
    return code, BuildTermination(category=Category.INFRASTRUCTURE, reason=reason, message=message, build=files.read_snapshot())


def _poster(build: BundleBuild, identity: JobIdentity, files: BuildFiles) -> Poster | None:
    url = os.environ.get(names.ENV_STATUS_URL)
    if not url:
        return None
    pod = os.environ.get(names.ENV_POD_NAME, "")

    def newest() -> BuildSnapshot:
        """The child's, its end's where it has ended; the time is PID 1's, which lives while a step is long."""
        end = files.read_end()
        known = (end.build if end is not None else None) or files.read_snapshot()
        known = known or BuildSnapshot(sequence=build.sequence, stage=BuildStage.STARTING, total=len(build.adapters))
        return fit_snapshot(known.model_copy(update={"last_update_time": datetime.now(UTC), "pod": pod}))

    return Poster(Endpoint(url=url, identity=identity, path=names.BUNDLE_STATUS_PATH), newest)
