"""Before anything heavy is imported: is the run over already, whose turn is it, are the sources there?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from olivine_api import names
from olivine_api.status import JobIdentity, Stage
from olivine_trainer.data.prepare import LoadedRows, load_rows
from olivine_trainer.data.rows import RowFiles
from olivine_trainer.data.selection import Selection, parse_selection
from olivine_trainer.errors import TrainerError
from olivine_trainer.job import Job
from olivine_trainer.reporting.board import Board
from olivine_trainer.reporting.logs import CONTEXT, log, warn
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.credentials import Access, resolve_access
from olivine_trainer.storage.failures import FIELDS, Role
from olivine_trainer.storage.fetch import FetchedModel, fetch_model, fetch_rows, open_rows, parent_of_rows
from olivine_trainer.storage.head import Attempt, take_attempt
from olivine_trainer.storage.index import IndexEntry, point_to
from olivine_trainer.storage.layout import run_folder
from olivine_trainer.storage.publishing import require_writable
from olivine_trainer.storage.ranges import RangeFile
from olivine_trainer.storage.records import Published, RunRecords
from olivine_trainer.storage.source import Source, hub_is_forbidden, open_source
from olivine_trainer.storage.store import Store
from olivine_trainer.world.world import World, alone

RowsRole = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Claim:
    """The right to write to a run, as its newest attempt."""

    records: RunRecords
    attempt: Attempt

    @property
    def run(self) -> Store:
        """The run's folder."""
        return self.records.run

    def point_index(self, published: Published, identity: JobIdentity) -> None:
        """Let equal jobs find what was published; best effort."""
        point_index(self.records, published, identity, again=False)


@dataclass(frozen=True)
class Sources:
    """What the specification names, on this machine."""

    rows: LoadedRows
    model: FetchedModel
    commits: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the hub's repositories, by role."""
    publish: Access | None = None
    """The second place of what is published (outputs.publish): it was tried whether it can be written to."""


def open_run(job: Job, environ: Mapping[str, str]) -> RunRecords:
    """The run's folder in the job's storage."""
    identity = job.identity
    storage = Store(resolve_access(job.spec, "storage", environ))
    run = storage.sub(run_folder(identity.namespace, identity.name, identity.uid))
    return RunRecords(run, namespace=storage.sub(identity.namespace))


def point_index(records: RunRecords, published: Published, identity: JobIdentity, *, again: bool) -> None:
    """Let equal jobs find what was published; best effort, the run is over either way. `again`: see `point_to`."""
    artifacts = published.snapshot.artifacts if not published.unmet else []
    if records.namespace is None or published.input_digest is None or not artifacts:
        return
    entry = IndexEntry(
        input_digest=published.input_digest, artifact=artifacts[0], job=identity, published_at=published.published_at
    )
    try:
        point_to(records.namespace, entry, again=again)
    except TrainerError as error:
        warn(f"the index of artifacts does not know this one: {error.message}")


def claim_run(job: Job, records: RunRecords, board: Board, world: World | None = None) -> Claim | Published:
    """The next attempt, or the run's end where it has one already; rank 0 looks and decides, for all ranks of `world`.

    Raises the user's error for a wrong bucket, denied access, or a store without conditional writes.
    """
    world = world or alone()

    def decide() -> dict[str, Any]:
        published = records.published()
        if published is not None:
            point_index(records, published, job.identity, again=True)  # whoever published may have died before
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


def fetch_sources(
    job: Job, environ: Mapping[str, str], scratch: Path, board: Board, commits: Mapping[str, str] | None = None
) -> Sources:
    """Rows first, then the model: a missing column is told before gigabytes are moved.

    `commits`: of the hub's repositories, by role, as the run's first attempt found them.
    """
    spec = job.spec
    publish = _second_place(job, environ)
    fetcher = _Fetcher(job, environ, scratch, dict(commits or {}))
    train = fetcher.streamed() if spec.data.streaming else fetcher.rows("train")
    validation = fetcher.rows("validation") if spec.data.validation is not None else None
    test = fetcher.rows("test") if spec.data.test is not None else None
    benchmarks = {benchmark.name: fetcher.benchmark(benchmark.uri) for benchmark in spec.evaluation.benchmarks or ()}
    rows = load_rows(spec.data, train, validation, test, benchmarks, seed=spec.training.seed)
    if rows.removed.leaked:
        warn(f"{rows.removed.leaked} training rows are left out: data.validation, data.test or a benchmark has them too")
    if not (rows.split.validation or test or benchmarks):
        warn("there are no rows to measure on (data.validation or data.validationFraction): only the training loss is reported")
    board.progress(stage=Stage.LOADING_MODEL)
    model = fetcher.model()
    log("sources are here", rows=rows.train_rows, validationRows=len(rows.split.validation), modelBytes=model.bytes)
    return Sources(rows=rows, model=model, commits=fetcher.commits, publish=publish)


def published_below(identity: JobIdentity) -> str:
    """The prefix below outputs.publish.uri."""
    return f"{identity.namespace}/{identity.name}"


def _second_place(job: Job, environ: Mapping[str, str]) -> Access | None:
    """Told before anything is trained: a place that cannot be written to."""
    if job.spec.outputs is None or job.spec.outputs.publish is None:
        return None
    access = resolve_access(job.spec, "publish", environ)
    require_writable(access, published_below(job.identity), hub_offline=hub_is_forbidden(environ))
    return access


class _Fetcher:
    """Fetches one role after the other into the same cache, and notes the commits."""

    def __init__(self, job: Job, environ: Mapping[str, str], scratch: Path, commits: dict[str, str]) -> None:
        self._job = job
        self._environ = environ
        self._scratch = scratch
        self.commits = commits
        own = FileCache(scratch / "sources")
        shared = job.spec.model.cache is not None
        self._cache = FileCache(Path(names.MODEL_CACHE_DIR) / "olivine", fallback=own) if shared else own

    def model(self) -> FetchedModel:
        """The base model's folder."""
        spec = self._job.spec.model
        source = self._open("model", resolve_access(self._job.spec, "model", self._environ), revision=spec.revision)
        return fetch_model(source, self._cache, allowed_licenses=spec.allowed_licenses, with_code=spec.trust_remote_code)

    def rows(self, role: RowsRole) -> RowFiles:
        """The files of rows of a role; a file's folder is the source, so that a missing file can be told from its neighbours."""
        source, _, name, selection = self._located(role)
        fetched = fetch_rows(source, name, selection.splits if selection is not None else None, self._cache)
        return RowFiles(files=fetched.files, selection=selection)

    def streamed(self) -> list[RangeFile]:
        """The files of training rows, to be read in pieces where they lie."""
        source, access, name, selection = self._located("train")
        return open_rows(source, access, name, selection.splits if selection is not None else None, self._cache)

    def _located(self, role: RowsRole) -> tuple[Source, Access, str | None, Selection | None]:
        """The folder, how it is reached, the file in it where one is named, and which rows are wanted."""
        spec, place = self._job.spec, FIELDS[role]
        wanted = {"train": spec.data.train, "validation": spec.data.validation, "test": spec.data.test}[role]
        selection = parse_selection(wanted.split, place) if wanted is not None and wanted.split is not None else None
        access = resolve_access(spec, role, self._environ)
        folder, name = parent_of_rows(access.uri)
        return self._open(role, access.at(folder)), access.at(folder), name, selection

    def benchmark(self, uri: str) -> RowFiles:
        """All rows of a benchmark's file."""
        folder, name = parent_of_rows(uri)
        source = self._open("benchmark", resolve_access(self._job.spec, "benchmark", self._environ, benchmark=uri).at(folder))
        return RowFiles(files=fetch_rows(source, name, None, self._cache).files)

    def _open(self, role: Role, access: Access, *, revision: str | None = None) -> Source:
        source = open_source(access, self._cache, self._scratch, self._environ, revision=revision, commit=self.commits.get(role))
        if source.revision is not None:
            self.commits[role] = source.revision
        return source
