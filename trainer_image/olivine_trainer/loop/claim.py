"""Before anything heavy is imported: is the run over already, whose turn is it, are the sources there?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from olivine_api.status import Stage
from olivine_trainer.data.prepare import LoadedRows, load_rows
from olivine_trainer.job import Job
from olivine_trainer.reporting.board import Board
from olivine_trainer.reporting.logs import CONTEXT, log, warn
from olivine_trainer.storage.credentials import resolve_access
from olivine_trainer.storage.failures import Role
from olivine_trainer.storage.fetch import FetchedModel, fetch_model, fetch_rows_file
from olivine_trainer.storage.head import Attempt, take_attempt
from olivine_trainer.storage.layout import run_folder
from olivine_trainer.storage.records import Published, RunRecords
from olivine_trainer.storage.store import Store
from olivine_trainer.world.world import World, alone


@dataclass(frozen=True)
class Claim:
    """The right to write to a run, as its newest attempt."""

    records: RunRecords
    attempt: Attempt

    @property
    def run(self) -> Store:
        """The run's folder."""
        return self.records.run


@dataclass(frozen=True)
class Sources:
    """What the specification names, on this machine."""

    rows: LoadedRows
    model: FetchedModel


def open_run(job: Job, environ: Mapping[str, str]) -> RunRecords:
    """The run's folder in the job's storage."""
    identity = job.identity
    storage = Store(resolve_access(job.spec, "storage", environ))
    return RunRecords(storage.sub(run_folder(identity.namespace, identity.name, identity.uid)))


def claim_run(job: Job, records: RunRecords, board: Board, world: World | None = None) -> Claim | Published:
    """The next attempt, or the run's end where it has one already; rank 0 looks and decides, for all ranks of `world`.

    Raises the user's error for a wrong bucket, denied access, or a store without conditional writes.
    """
    world = world or alone()

    def decide() -> dict[str, Any]:
        published = records.published()
        if published is not None:
            return {"published": published.to_json_dict()}
        attempt = take_attempt(records.run)
        _enter(attempt, records, board)
        records.record_spec(job.spec, job.spec_digest)
        return {"attempt": attempt.number, "fence": attempt.fence}

    decided = world.from_leader(decide)
    if "published" in decided:
        return Published.model_validate(decided["published"])
    attempt = Attempt(number=decided["attempt"], fence=decided["fence"])
    if not world.leads:
        _enter(attempt, records, board)
    log(f"attempt {attempt.number} of {records.run.uri}")
    return Claim(records=records, attempt=attempt)


def _enter(attempt: Attempt, records: RunRecords, board: Board) -> None:
    """From here on this process works for `attempt`."""
    records.run.grant()
    CONTEXT.fields["attempt"] = attempt.number
    board.update(attempt=attempt.number, storage_uri=records.run.uri)


def fetch_sources(job: Job, environ: Mapping[str, str], scratch: Path, board: Board) -> Sources:
    """Rows first, then the model: a missing column is told before gigabytes are moved."""
    spec = job.spec
    train = _rows_file(job, "train", environ, scratch)
    validation = _rows_file(job, "validation", environ, scratch) if spec.data.validation is not None else None
    rows = load_rows(spec.data, train, validation, seed=spec.training.seed)
    if rows.repeated:
        warn(f"{rows.repeated} validation rows are among the training rows too: what is measured on them is too good")
    if not rows.split.validation:
        warn("there are no validation rows (data.validation or data.validationFraction): only the training loss is reported")
    board.progress(stage=Stage.LOADING_MODEL)
    model = fetch_model(Store(resolve_access(spec, "model", environ)), scratch / "model")
    log("sources are here", rows=len(rows.split.train), validationRows=len(rows.split.validation), modelBytes=model.bytes)
    return Sources(rows=rows, model=model)


def _rows_file(job: Job, role: Role, environ: Mapping[str, str], scratch: Path) -> Path:
    """The file of rows of a role; its folder is the store, so that a missing file can be told from its neighbours."""
    access = resolve_access(job.spec, role, environ)
    scheme, _, path = access.uri.partition("://")
    folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
    store = Store(access.at(f"{scheme}://{folder}"))
    return fetch_rows_file(store, name, scratch / "data" / role)
