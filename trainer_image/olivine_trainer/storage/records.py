"""The small records of a run: its specification, the base model's measurements, each attempt's progress, and its one publication."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from olivine_api.base import StatusModel
from olivine_api.finetunejob import FineTuneJobSpec
from olivine_api.reasons import Reason
from olivine_api.status import Artifact, ArtifactKind, MetricMap, Snapshot
from olivine_trainer.errors import ConfigurationError, DataError, ModelError, StorageUnavailableError, SupersededError
from olivine_trainer.storage.head import Attempt, require_head
from olivine_trainer.storage.layout import BASELINE, PUBLISHED, SOURCES, SPEC, artifact_folder, attempt_folder
from olivine_trainer.storage.manifest import manifest_of, unlisted, upload_files, write_manifest
from olivine_trainer.storage.store import Store


class Sample(StatusModel):
    """One held-back row with both models' answers."""

    prompt: str
    expected: str | None = None
    base: str | None = None
    tuned: str | None = None


class SourceDigests(StatusModel):
    """What the first attempt trained on; created once, never changed."""

    attempt: int
    data: str
    model: str
    commits: dict[str, str] = {}
    """Of the hub's repositories, by role: later attempts read the same, whatever a branch has become."""
    effective_batch: int | None = None
    """Rows of an optimizer step: later attempts keep it, whatever their number of processes. Absent in records of older releases."""


class Baseline(StatusModel):
    """What the base model scores: measured once in a run's life."""

    metrics: MetricMap = {}
    answers: list[str] = []
    """Its answers to the sample prompts, in the validation rows' order."""


class AttemptProgress(StatusModel):
    """How far an attempt is known to have come; its own attempt overwrites it every few seconds."""

    step: int = Field(ge=0)
    lost_steps: int = 0
    """Steps that this attempt and those before it had to train again."""


class Published(StatusModel):
    """The end of a run: created once, never changed."""

    attempt: int
    spec_digest: str
    input_digest: str | None = None
    """Names specification, rows and base model, wherever they lie; absent in records of older releases."""
    published_at: datetime
    snapshot: Snapshot
    samples: list[Sample] = []
    unmet: list[str] = []
    """Gates that the tuned model does not meet: the run ended without being published, its artifact is kept."""


@dataclass(frozen=True)
class RunRecords:
    """Reads and writes of one run's records."""

    run: Store
    namespace: Store | None = None
    """The folder of all runs of the namespace, where the index lies."""

    def record_spec(self, spec: FineTuneJobSpec, digest: str) -> None:
        """Write the specification once. Raises ConfigurationError where the folder belongs to another one."""
        body = json.dumps({"specDigest": digest, "spec": spec.to_json_dict()}, indent=1).encode()
        if self.run.put_if_absent(SPEC, body):
            return
        found = self.run.get(SPEC)
        if found is not None and json.loads(found.data).get("specDigest") != digest:
            raise ConfigurationError(
                Reason.INVALID_SPEC,
                f"{self.run.uri} already holds a run of another specification: use a new name, or another storage.uri",
            )

    def record_sources(self, mine: Attempt, found: SourceDigests) -> SourceDigests:
        """Write down once what the run trains on; returns what its first attempt wrote.

        Before the baseline is read and a checkpoint is taken up: both are of these sources alone. Raises DataError or ModelError
        where an earlier attempt had other rows or another base model.
        """
        known = self._sources()
        if known is None:
            require_head(self.run, mine)
            if self.run.put_if_absent(SOURCES, _json(found)):
                return found
            known = self._sources()
        if known is None:
            raise StorageUnavailableError(f"{self.run.uri}/{SOURCES} stands there, but cannot be read")
        if known.data != found.data:
            raise DataError(
                Reason.SOURCE_CHANGED, _changed("the rows of data.train, data.validation or data.test have", known.attempt)
            )
        if known.model != found.model:
            raise ModelError(Reason.SOURCE_CHANGED, _changed("the files of model.uri have", known.attempt))
        return known

    def commits(self) -> dict[str, str]:
        """The hub's commits that the run began with, by role."""
        known = self._sources()
        return known.commits if known is not None else {}

    def published(self) -> Published | None:
        """The run's end, where it has one."""
        found = self.run.get(PUBLISHED)
        return Published.model_validate_json(found.data) if found is not None else None

    def publish(
        self,
        mine: Attempt,
        *,
        spec_digest: str,
        input_digest: str,
        snapshot: Snapshot,
        samples: list[Sample],
        unmet: Sequence[str] = (),
    ) -> Published:
        """Create the run's end. Raises SupersededError where somebody else did, or the head has moved."""
        end = Published(
            attempt=mine.number,
            spec_digest=spec_digest,
            input_digest=input_digest,
            published_at=datetime.now(UTC),
            snapshot=snapshot,
            samples=samples,
            unmet=list(unmet),
        )
        require_head(self.run, mine)
        # The client tries again by itself where an answer is lost, and then finds what it wrote itself.
        if not self.run.put_if_absent(PUBLISHED, _json(end)) and self.published() != end:
            raise SupersededError(f"the run was published by another attempt: attempt {mine.number} writes nothing more")
        return end

    def baseline(self) -> Baseline | None:
        """The base model's measurements, where an attempt has finished them."""
        found = self.run.get(BASELINE)
        return Baseline.model_validate_json(found.data) if found is not None else None

    def record_baseline(self, mine: Attempt, baseline: Baseline) -> None:
        """Keep the base model's measurements for the attempts to come; the first to finish wins, all measure the same."""
        require_head(self.run, mine)
        self.run.put_if_absent(BASELINE, _json(baseline))

    def progress_before(self, attempt: int) -> AttemptProgress | None:
        """The newest progress that an attempt before `attempt` has left."""
        for number in range(attempt - 1, 0, -1):
            found = self.run.get(_progress_key(number))
            if found is not None:
                return AttemptProgress.model_validate_json(found.data)
        return None

    def record_progress(self, attempt: int, progress: AttemptProgress) -> None:
        """Overwrite the attempt's own progress, in one try: the next one is seconds away."""
        self.run.once().put(_progress_key(attempt), _json(progress))

    def _sources(self) -> SourceDigests | None:
        found = self.run.get(SOURCES)
        return SourceDigests.model_validate_json(found.data) if found is not None else None


def upload_artifact(run: Store, mine: Attempt, folder: Path, kind: ArtifactKind, about: dict[str, Any]) -> Artifact:
    """Write an artifact's folder under its digest; the same content is the same artifact, whoever wrote it."""
    manifest = manifest_of(folder, {"kind": kind, **about})
    key = artifact_folder(manifest.digest)
    upload_files(run, key, folder, manifest, may_write=lambda: require_head(run, mine))
    for path in unlisted(folder, manifest):
        run.put(f"{key}/{path}", folder / path)
    require_head(run, mine)
    write_manifest(run, key, manifest)
    return Artifact(kind=kind, uri=f"{run.uri}/{key}", digest=manifest.digest, bytes=sum(manifest.sizes.values()))


def _changed(what: str, attempt: int) -> str:
    return f"{what} changed since attempt {attempt} of this run: put them back, or train on the new ones under a new name"


def _progress_key(attempt: int) -> str:
    return f"{attempt_folder(attempt)}/progress.json"


def _json(model: StatusModel) -> bytes:
    return model.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()
