"""The one publish: artifact, its manifest, then the run's record, and the clean-up after it."""

import shutil
from itertools import zip_longest
from pathlib import Path
from typing import Any

from olivine_api.status import Artifact, ResolvedModel
from olivine_trainer.errors import TrainerError
from olivine_trainer.evaluation.evaluate import Evaluated, Evaluator
from olivine_trainer.evaluation.gates import unmet_gates
from olivine_trainer.job import Job
from olivine_trainer.loop.claim import Claim
from olivine_trainer.loop.engine import Engine
from olivine_trainer.loop.tracker import Tracker
from olivine_trainer.loop.usage import peak_memory_bytes
from olivine_trainer.methods.method import About
from olivine_trainer.reporting.board import finite
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.storage.checkpoints import prune_checkpoints
from olivine_trainer.storage.records import Baseline, Published, Sample, upload_artifact


def publish(
    *,
    job: Job,
    claim: Claim,
    engine: Engine,
    evaluator: Evaluator,
    tracker: Tracker,
    baseline: Baseline,
    tuned: Evaluated,
    scratch: Path,
) -> Published:
    """Write the artifact and the run's end, published or, with a gate unmet, kept back. Raises SupersededError where another attempt owns the run: nothing is published then."""
    board = tracker.board
    artifact = _upload(job, claim, engine, evaluator.tokenizer.backend, scratch, base=board.snapshot.resolved.model)
    unmet = unmet_gates(job.spec.evaluation.gates or (), finite(tuned.metrics), baseline.metrics, evaluator.keys)
    keep = job.spec.checkpoint.keep if unmet else job.spec.checkpoint.keep_after_success
    board.progress(percent=100, eta_seconds=0)
    board.update(
        artifacts=[artifact],
        peak_memory_bytes=peak_memory_bytes(),
        # The record outlives the checkpoints that are deleted next.
        checkpoint=board.snapshot.checkpoint if keep else None,
    )
    tracker.events.add(event="Publishing", artifact=artifact.uri, digest=artifact.digest)
    tracker.flush()
    published = claim.records.publish(
        claim.attempt,
        spec_digest=job.spec_digest,
        input_digest=job.input_digest(board.snapshot.resolved),
        snapshot=board.snapshot,
        samples=_samples(evaluator, baseline, tuned),
        unmet=unmet,
    )
    if unmet:
        warn("not published: gates are not met", artifact=artifact.uri, unmet=unmet)
        return published
    claim.point_index(published, job.identity)
    log("published", artifact=artifact.uri, bytes=artifact.bytes, **published.snapshot.metrics)
    try:
        prune_checkpoints(claim.run, claim.attempt, keep)
    except TrainerError as error:
        warn(f"checkpoints are left behind: {error.message}")
    return published


def _upload(job: Job, claim: Claim, engine: Engine, tokenizer: Any, scratch: Path, *, base: ResolvedModel | None) -> Artifact:
    folder = scratch / "artifact"
    shutil.rmtree(folder, ignore_errors=True)
    engine.method.export(folder, About(base_uri=job.spec.model.uri, tokenizer=tokenizer))
    about = {
        "method": job.spec.method.type.value,
        "specDigest": job.spec_digest,
        # What it belongs on: whoever gathers adapters tells one base from another of the same shapes by this.
        "modelUri": job.spec.model.uri,
        **({"modelDigest": base.digest} if base is not None else {}),
    }
    return upload_artifact(claim.run, claim.attempt, folder, engine.method.kind, about)


def _samples(evaluator: Evaluator, baseline: Baseline, tuned: Evaluated) -> list[Sample]:
    rows = evaluator.sample_examples()
    pairs = list(zip_longest(baseline.answers, tuned.answers))
    return [
        Sample(prompt=row.prompt, expected=row.expected, base=base, tuned=answer)
        for row, (base, answer) in zip(rows, pairs, strict=False)
    ]
