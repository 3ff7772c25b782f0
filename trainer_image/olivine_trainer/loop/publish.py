"""The one publish: artifacts, each with its manifest, then the run's record, and the clean-up after it."""

from itertools import zip_longest

from olivine_trainer.errors import TrainerError
from olivine_trainer.evaluation.evaluate import Evaluated, Evaluator
from olivine_trainer.evaluation.gates import unmet_gates
from olivine_trainer.loop.elsewhere import publish_elsewhere
from olivine_trainer.loop.outputs import make_outputs
from olivine_trainer.loop.run import Run
from olivine_trainer.loop.usage import peak_memory_bytes
from olivine_trainer.reporting.board import finite
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.storage.checkpoints import prune_checkpoints
from olivine_trainer.storage.records import Baseline, Published, Sample


def publish(run: Run, baseline: Baseline, tuned: Evaluated) -> Published:
    """Write the artifacts and the run's end, published or, with a gate unmet, kept back.

    Raises SupersededError where another attempt owns the run: nothing is published then. ModelError where an output is not what
    was trained: what training made is kept, and so are its checkpoints.
    """
    job, claim, board, tracker = run.job, run.claim, run.board, run.tracker
    unmet = unmet_gates(job.spec.evaluation.gates or (), finite(tuned.metrics), baseline.metrics, run.evaluator.keys)
    samples = _samples(run.evaluator, baseline, tuned)
    outputs = make_outputs(run, everything=not unmet)
    if run.sources.publish is not None and not unmet:
        publish_elsewhere(run, run.sources.publish, outputs)
    keep = job.spec.checkpoint.keep if unmet else job.spec.checkpoint.keep_after_success
    board.progress(percent=100, eta_seconds=0)
    board.update(
        artifacts=[output.artifact for output in outputs],
        peak_memory_bytes=peak_memory_bytes(),
        # The record outlives the checkpoints that are deleted next.
        checkpoint=board.snapshot.checkpoint if keep else None,
    )
    for output in outputs:
        tracker.events.add(event="Publishing", artifact=output.artifact.uri, digest=output.artifact.digest)
    tracker.flush()
    published = claim.records.publish(
        claim.attempt,
        spec_digest=job.spec_digest,
        input_digest=job.input_digest(board.snapshot.resolved),
        snapshot=board.snapshot,
        samples=samples,
        unmet=unmet,
    )
    uris = [output.artifact.uri for output in outputs]
    if unmet:
        warn("not published: gates are not met", artifacts=uris, unmet=unmet)
        return published
    claim.point_index(published, job.identity)
    log("published", artifacts=uris, bytes=sum(output.artifact.bytes for output in outputs), **published.snapshot.metrics)
    try:
        prune_checkpoints(claim.run, claim.attempt, keep)
    except TrainerError as error:
        warn(f"checkpoints are left behind: {error.message}")
    return published


def _samples(evaluator: Evaluator, baseline: Baseline, tuned: Evaluated) -> list[Sample]:
    rows = evaluator.sample_examples()
    pairs = list(zip_longest(baseline.answers, tuned.answers))
    return [
        Sample(prompt=row.prompt, expected=row.expected, base=base, tuned=answer)
        for row, (base, answer) in zip(rows, pairs, strict=False)
    ]
