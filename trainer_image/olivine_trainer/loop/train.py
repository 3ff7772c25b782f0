"""The verb `train`, top to bottom.

One method on one process a device, any number of them; the loss is weighted by tokens, whatever the accumulation; the base model is measured first
and by the same code as the tuned one; checkpoints are exact; the artifact is published once.

Raises TrainerErrors: ModelError, DataError and ConfigurationError before the first step, NonFiniteLossError in it,
InterruptedRunError once a checkpoint is saved, SupersededError where a newer attempt owns the run, StorageUnavailableError,
PeerLostError where another rank is gone, OutOfMemoryError where one row at a time is too much.
"""

import shutil
import time
from pathlib import Path
from typing import Any

from olivine_api.finetunejob import EarlyStopping
from olivine_api.status import Best, CheckpointStatus, Stage
from olivine_trainer.errors import InterruptedRunError, StorageUnavailableError
from olivine_trainer.evaluation.evaluate import Evaluated
from olivine_trainer.evaluation.keys import EVAL_LOSS
from olivine_trainer.evaluation.loss import Tick
from olivine_trainer.job import Job
from olivine_trainer.loop.agreement import MemoryExhaustedError
from olivine_trainer.loop.claim import Claim, Sources
from olivine_trainer.loop.engine import StepResult
from olivine_trainer.loop.estimate import estimate
from olivine_trainer.loop.micro import free_caches
from olivine_trainer.loop.publish import publish
from olivine_trainer.loop.run import Run, set_up
from olivine_trainer.loop.saving import CPU, save, settle
from olivine_trainer.loop.state import (
    Progressed,
    RandomState,
    capture_random,
    load_state,
    load_weights,
    restore_random,
    saved_best_weights,
)
from olivine_trainer.loop.stop import StopFlag
from olivine_trainer.loop.stopping import best_weights, metric_of, needs_answers
from olivine_trainer.loop.tolerance import tolerated
from olivine_trainer.loop.usage import memory_in_words
from olivine_trainer.reporting.board import Board, finite
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.storage.checkpoints import Restored, restore_newest
from olivine_trainer.storage.layout import CHECKPOINTS
from olivine_trainer.storage.manifest import DamagedFolderError, download_verified
from olivine_trainer.storage.records import Baseline, Published, SourceDigests
from olivine_trainer.world.world import World, alone


def train(
    job: Job,
    claim: Claim,
    sources: Sources,
    *,
    board: Board,
    stop: StopFlag,
    scratch: Path,
    world: World | None = None,
    micro_batch: int | None = None,
) -> Published:
    """Train the job to its end and publish it; see the module for what is raised.

    `micro_batch`: at most so many rows at once; the effective batch stays the specification's.
    """
    world = world or alone()
    claim.run.hurry_when(lambda: stop.requested)
    effective_batch = _begin(job, claim, sources, world)
    restored = _restore(job, claim, scratch, world)
    run = set_up(
        job,
        claim,
        sources,
        board=board,
        stop=stop,
        scratch=scratch,
        world=world,
        micro_batch=micro_batch,
        effective_batch=effective_batch,
    )
    done = _resume(run, restored)
    # The first collective waits 5 minutes at most; one pod may load its model from a slower disk.
    world.wait_for_all()
    stop.defer()
    try:
        return _train_and_publish(run, done)
    finally:
        run.close()


def _train_and_publish(run: Run, done: Progressed) -> Published:
    try:
        baseline = _measure_base(run)
        _estimate(run, done)
        done = _train_steps(run, done)
        tuned = _measure_tuned(run, done)
    except InterruptedRunError:
        settle(run)
        run.world.leave()  # all ranks are here: nobody is to be missed
        with tolerated("the last metrics are not in storage"):  # this end must stay an interruption
            run.tracker.flush()
        raise
    settle(run)
    # From here on rank 0 needs nobody; the others wait for its word.
    run.board.progress(stage=Stage.PUBLISHING)
    with run.engine.whole(CPU):
        published = run.world.last_word(lambda: publish(run, baseline, tuned).to_json_dict())
    return Published.model_validate(published)


def _begin(job: Job, claim: Claim, sources: Sources, world: World) -> int:
    """Hold on to what the run's first attempt began with; returns its effective batch."""
    training = job.spec.training
    asked = training.batch_size * training.gradient_accumulation_steps * world.size
    mine = SourceDigests(
        attempt=claim.attempt.number,
        data=sources.rows.digest,
        model=sources.model.digest,
        commits=dict(sources.commits),
        effective_batch=asked,
    )
    return world.from_leader(lambda: claim.records.record_sources(claim.attempt, mine).effective_batch or asked)


def _restore(job: Job, claim: Claim, scratch: Path, world: World) -> Restored:
    """The newest checkpoint that verifies, on this machine: rank 0 chooses, every rank fetches and verifies that one."""
    folder = scratch / "restored"
    found: Restored | None = None

    def choose() -> dict[str, Any] | None:
        nonlocal found
        found = restore_newest(claim.run, folder, spec_digest=job.spec_digest)
        return found.status.to_json_dict() if found.status is not None else None

    chosen = world.from_leader(choose)
    if found is not None:
        return found
    if chosen is None:
        return Restored(folder=None, status=None, skipped=())
    status = CheckpointStatus.model_validate(chosen)
    name = status.uri.rpartition("/")[2]
    try:
        download_verified(claim.run, f"{CHECKPOINTS}/{name}", folder / name)
    except DamagedFolderError as error:
        raise StorageUnavailableError(f"{status.uri} verified for rank 0, but not here: {error}") from None
    return Restored(folder=folder / name, status=status, skipped=())


def _resume(run: Run, restored: Restored) -> Progressed:
    """Load the checkpoint, and count what the attempts before had trained beyond it."""
    for skipped in restored.skipped:
        warn(f"checkpoint {skipped.name} is skipped: {skipped.why}")
        run.tracker.events.add(event="CheckpointSkipped", checkpoint=str(skipped.name), why=skipped.why)
    done = Progressed()
    if restored.folder is not None and restored.status is not None:
        done = load_state(restored.folder, run.engine)
        if (best := saved_best_weights(restored.folder)) is not None:
            shutil.move(best, best_weights(run.scratch))
        shutil.rmtree(restored.folder)
        run.board.restore_curve(done.curve)
        run.board.update(checkpoint=restored.status, resumed_from_step=done.step, metrics=done.metrics, best=done.best)
        log(f"resumed from {restored.status.uri}", resumedFromStep=done.step)
    run.tracker.lost_steps = run.world.from_leader(lambda: _lost_steps(run, done))
    run.board.update(lost_steps=run.tracker.lost_steps)
    run.tracker.events.add(event="AttemptStarted", step=done.step, lostSteps=run.tracker.lost_steps)
    run.tracker.note_progress(done.step, force=True)
    run.tracker.show(done)
    return done


def _lost_steps(run: Run, done: Progressed) -> int:
    before = run.claim.records.progress_before(run.claim.attempt.number)
    return before.lost_steps + max(0, before.step - done.step) if before is not None else 0


def _measure_base(run: Run) -> Baseline:
    """The base model's scores: measured by the first attempt that gets so far, read by the others."""

    def read() -> dict[str, Any] | None:
        known = run.claim.records.baseline()
        return known.to_json_dict() if known is not None else None

    known = run.world.from_leader(read)
    baseline = Baseline.model_validate(known) if known is not None else None
    if baseline is None:
        run.board.progress(stage=Stage.EVALUATING_BASE)
        with run.engine.whole(), run.engine.method.as_base():
            measured = run.evaluator.everything(_ticker(run))
        baseline = Baseline(metrics=finite(measured.metrics), answers=measured.answers)
        # Not by rank 0 alone: a store that is away for minutes would outlast the collective in which the others wait.
        run.world.from_leader(lambda: run.claim.records.record_baseline(run.claim.attempt, baseline))
        log("the base model is measured", **baseline.metrics)
    run.board.update(baseline=baseline.metrics)
    return baseline


def _estimate(run: Run, done: Progressed) -> None:
    """Tell what the steps that are left will take."""
    left = run.tracker.total_steps - done.step
    if left:
        run.board.update(estimate=estimate(run.engine, run.data.some, run.micro.rows, steps_left=left))


def _train_steps(run: Run, done: Progressed) -> Progressed:
    """All optimizer steps that are left. On SIGTERM: save between steps, then raise InterruptedRunError."""
    spec, engine, tracker = run.job.spec, run.engine, run.tracker
    saved = done.step  # nothing new to save yet
    run.board.progress(stage=Stage.TRAINING)
    randomness = capture_random()
    try:
        while True:
            done = _evaluate_between(run, done)
            ends = done.step == tracker.total_steps or _out_of_patience(run, done)
            if done.step > saved and (ends or done.step % spec.checkpoint.every_steps == 0):
                save(run, done, randomness)
                saved = done.step
            if ends:
                return done
            run.uploads.check()
            start = time.monotonic()
            result = _step(run, done.step, randomness)
            if engine.schedule.follows_loss and spec.evaluation.every_steps is None:
                engine.schedule.observe(result.loss)
            randomness = capture_random()
            done = done.model_copy(
                update={
                    "step": done.step + 1,
                    "trained_tokens": done.trained_tokens + result.tokens,
                    "truncated": done.truncated + result.truncated,
                }
            )
            _count_truncated(run, done)
            done = tracker.stepped(done, result, time.monotonic() - start, engine.schedule.learning_rate)
    except InterruptedRunError as interrupted:
        # A step that was begun has moved the generators: what is saved is the moment before it.
        if done.step > saved:
            save(run, done, randomness)
        message = (
            f"{interrupted.message}: step {done.step} is saved" if done.step else f"{interrupted.message} before the first step"
        )
        raise InterruptedRunError(message, step=done.step) from None


def _count_truncated(run: Run, done: Progressed) -> None:
    """Rows that are read while training are cut while training: status counts them as they come."""
    resolved = run.board.snapshot.resolved
    data = resolved.data
    if run.job.spec.data.streaming and data is not None and done.truncated:
        counted = run.data.resolved.truncated + done.truncated
        run.board.update(resolved=resolved.model_copy(update={"data": data.model_copy(update={"truncated": counted})}))


def _step(run: Run, step: int, randomness: RandomState) -> StepResult:
    """One optimizer step; where memory runs out it is repeated from its start, on all ranks, with half the rows at a time."""
    while True:
        try:
            return run.engine.train_step(run.data.train, step, run.micro.rows, run.agreement.go_on)
        except MemoryExhaustedError as error:
            why = str(error)
        run.micro.halve(why, step=step, memory=memory_in_words())
        free_caches()
        restore_random(randomness)
        run.tracker.events.add(event="MicroBatchHalved", step=step, microBatch=run.micro.rows, why=why)
        warn(f"{why}: step {step + 1} is repeated in smaller micro-batches, the effective batch stays", microBatch=run.micro.rows)


def _evaluate_between(run: Run, done: Progressed) -> Progressed:
    """The validation loss where it is due after this step and not measured yet; a resumed run catches up here."""
    every = run.job.spec.evaluation.every_steps
    due = every is not None and done.step > 0 and done.step % every == 0 and done.evaluated_step != done.step
    if not due or not run.data.validation:
        return done
    run.board.progress(stage=Stage.EVALUATING)
    stopping = run.job.spec.training.early_stopping
    measure = run.evaluator.validation_only if needs_answers(stopping) else run.evaluator.loss_only
    with run.engine.whole():
        metrics = measure(_ticker(run))
    run.engine.schedule.observe(metrics[EVAL_LOSS])
    done = done.model_copy(update={"evaluated_step": done.step, "metrics": {**done.metrics, **finite(metrics)}})
    run.board.point(done.step, eval_loss=metrics[EVAL_LOSS])
    if stopping is not None:
        done = _judge(run, done, stopping, finite(metrics))
    else:
        run.board.offer_best(done.step, EVAL_LOSS, metrics[EVAL_LOSS])
    run.board.update(metrics=done.metrics)
    run.tracker.evaluated(done.step, metrics)
    run.board.progress(stage=Stage.TRAINING)
    return done


def _judge(run: Run, done: Progressed, asked: EarlyStopping, metrics: dict[str, float]) -> Progressed:
    """Early stopping: keep the weights where they are the best so far, count where they are not."""
    name = metric_of(asked)
    done = done.model_copy(
        update={"stopping": done.stopping.after(done.step, metrics.get(name), asked, lower=run.evaluator.keys[name])}
    )
    if done.stopping.best_step == done.step:
        run.scratch.mkdir(parents=True, exist_ok=True)  # no checkpoint has been written there yet
        with run.engine.whole(CPU):
            run.engine.method.save_weights(best_weights(run.scratch))
        run.board.update(best=Best(step=done.step, metric=name, value=metrics[name]))
    return done


def _out_of_patience(run: Run, done: Progressed) -> bool:
    asked = run.job.spec.training.early_stopping
    if asked is None or not done.stopping.over(asked):
        return False
    told = {"step": done.step, "bestStep": done.stopping.best_step, "best": done.stopping.best}
    log(f"early stopping: {asked.metric} has not improved in {done.stopping.worse} evaluations", **told)
    run.tracker.events.add(event="EarlyStopped", metric=asked.metric, **told)
    return True


def _measure_tuned(run: Run, done: Progressed) -> Evaluated:
    """The tuned model's scores, by the code that measured the base; with early stopping those of the best weights."""
    run.board.progress(stage=Stage.EVALUATING)
    best = best_weights(run.scratch)
    older = best.exists() and done.stopping.best_step != done.step
    with run.engine.whole():
        if older:
            load_weights(best, run.engine)
            log(f"the weights of step {done.stopping.best_step} are published, the best by early stopping")
        tuned = run.evaluator.everything(_ticker(run))
    if EVAL_LOSS in tuned.metrics and not older:
        run.board.point(done.step, eval_loss=tuned.metrics[EVAL_LOSS])
        run.tracker.evaluated(done.step, tuned.metrics)
        if run.job.spec.training.early_stopping is None:
            run.board.offer_best(done.step, EVAL_LOSS, tuned.metrics[EVAL_LOSS])
    run.board.update(metrics={**done.metrics, **tuned.metrics})
    return tuned


def _ticker(run: Run) -> Tick:
    def tick(done: int, of: int) -> None:
        run.board.progress(stage_percent=100 * done // of)
        run.agreement.check()

    return tick
