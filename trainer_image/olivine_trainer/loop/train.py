"""The verb `train`, top to bottom.

LoRA by peft on one process a device; the loss is weighted by tokens, whatever the accumulation; the base model is measured first
and by the same code as the tuned one; checkpoints are exact; the adapter is published once.

Raises TrainerErrors: ModelError, DataError and ConfigurationError before the first step, NonFiniteLossError in it,
InterruptedRunError once a checkpoint is saved, SupersededError where a newer attempt owns the run, StorageUnavailableError.
"""

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from olivine_api.reasons import Reason
from olivine_api.status import Resolved, ResolvedModel, Stage
from olivine_trainer.data.batches import total_steps
from olivine_trainer.data.prepare import Prepared, prepare_examples
from olivine_trainer.errors import ConfigurationError, InterruptedRunError, ModelError
from olivine_trainer.evaluation.evaluate import EVAL_LOSS, Evaluated, Evaluator, metrics_of
from olivine_trainer.evaluation.loss import Tick
from olivine_trainer.job import Job
from olivine_trainer.loop.claim import Claim, Sources
from olivine_trainer.loop.engine import Engine, build_engine, make_accelerator
from olivine_trainer.loop.publish import publish
from olivine_trainer.loop.state import Progressed, RandomState, capture_random, load_state, save_state
from olivine_trainer.loop.stop import StopFlag
from olivine_trainer.loop.tolerance import tolerated
from olivine_trainer.loop.tracker import Tracker, tensorboard_for
from olivine_trainer.modeling.loading import embeddings, fitted_to, load_model, load_tokenizer
from olivine_trainer.modeling.precision import resolve_precision
from olivine_trainer.reporting.board import Board, finite
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.storage.checkpoints import prune_checkpoints, restore_newest, save_checkpoint
from olivine_trainer.storage.records import Baseline, Published


@dataclass(frozen=True)
class Run:
    """One attempt, set up: what every stage below works with."""

    job: Job
    claim: Claim
    board: Board
    stop: StopFlag
    scratch: Path
    data: Prepared
    engine: Engine
    evaluator: Evaluator
    tracker: Tracker


def train(job: Job, claim: Claim, sources: Sources, *, board: Board, stop: StopFlag, scratch: Path) -> Published:
    """Train the job to its end and publish it; see the module for what is raised."""
    claim.run.hurry_when(lambda: stop.requested)
    claim.records.record_sources(claim.attempt, data=sources.rows.digest, model=sources.model.digest)
    run = _set_up(job, claim, sources, board=board, stop=stop, scratch=scratch)
    done = _resume(run)
    stop.defer()
    try:
        baseline = _measure_base(run)
        done = _train_steps(run, done)
        tuned = _measure_tuned(run, done)
    except InterruptedRunError:
        with tolerated("the last metrics are not in storage"):  # this end must stay an interruption
            run.tracker.flush()
        raise
    return publish(
        job=job,
        claim=claim,
        engine=run.engine,
        evaluator=run.evaluator,
        tracker=run.tracker,
        baseline=baseline,
        tuned=tuned,
        scratch=scratch,
    )


def _set_up(job: Job, claim: Claim, sources: Sources, *, board: Board, stop: StopFlag, scratch: Path) -> Run:
    spec, uri = job.spec, job.spec.model.uri
    _make_deterministic(spec.training.seed)
    precision = resolve_precision(spec.training.precision)
    accelerator = make_accelerator(precision)
    tokenizer = load_tokenizer(sources.model.folder, uri)
    base = load_model(sources.model.folder, uri, precision.base_dtype)
    stop.check()
    tokenizer = fitted_to(base, tokenizer)
    data = prepare_examples(spec.data, sources.rows, tokenizer.backend, stop_ids=tokenizer.stop_ids)
    _check_positions(data, base.config, spec.data.max_length)
    _check_tokens(data, embeddings(base), uri)
    parameters = base.num_parameters()
    steps = total_steps(
        spec.training.max_steps,
        spec.training.epochs,
        rows=len(data.train),
        batch=spec.training.batch_size * spec.training.gradient_accumulation_steps * accelerator.num_processes,
    )
    engine = build_engine(spec, base, accelerator, total_steps=steps, pad_id=tokenizer.pad_id)
    stop.check()
    resolved = Resolved(
        model=ResolvedModel(uri=uri, digest=sources.model.digest, parameters=parameters),
        data=data.resolved,
        effective_batch_size=engine.effective_batch,
        precision=precision.name.value,
        world_size=accelerator.num_processes,
        trainable_parameters=sum(parameter.numel() for parameter in engine.model.parameters() if parameter.requires_grad),
    )
    board.update(resolved=resolved)
    if data.resolved.dropped or data.resolved.truncated:
        warn("rows were longer than data.maxLength", dropped=data.resolved.dropped, truncated=data.resolved.truncated)
    log(
        "the model is loaded",
        parameters=parameters,
        trainable=resolved.trainable_parameters,
        precision=resolved.precision,
        headOnLearnedPositionsOnly=engine.loss.split_head,
    )
    evaluator = Evaluator(
        loss=engine.loss,
        causal=engine.causal,
        tokenizer=tokenizer,
        examples=data.validation,
        batch_size=spec.training.eval_batch_size,
        metrics=metrics_of(spec),
        samples=spec.evaluation.samples,
        device=accelerator.device,
        autocast=engine.autocast,
    )
    tracker = Tracker(
        spec=spec,
        claim=claim,
        board=board,
        total_steps=steps,
        rows=len(data.train),
        effective_batch=engine.effective_batch,
        tensorboard=tensorboard_for(spec, scratch),
    )
    return Run(job, claim, board, stop, scratch, data, engine, evaluator, tracker)


def _resume(run: Run) -> Progressed:
    """Load the newest checkpoint that verifies, and count what the attempts before had trained beyond it."""
    restored = restore_newest(run.claim.run, run.scratch / "restored", spec_digest=run.job.spec_digest)
    for skipped in restored.skipped:
        warn(f"checkpoint {skipped.name} is skipped: {skipped.why}")
        run.tracker.events.add(event="CheckpointSkipped", checkpoint=str(skipped.name), why=skipped.why)
    done = Progressed()
    if restored.folder is not None and restored.status is not None:
        done = load_state(restored.folder, run.engine)
        shutil.rmtree(restored.folder)
        run.board.restore_curve(done.curve)
        run.board.update(checkpoint=restored.status, resumed_from_step=done.step, metrics=done.metrics, best=done.best)
        log(f"resumed from {restored.status.uri}", resumedFromStep=done.step)
    before = run.claim.records.progress_before(run.claim.attempt.number)
    if before is not None:
        run.tracker.lost_steps = before.lost_steps + max(0, before.step - done.step)
        run.board.update(lost_steps=run.tracker.lost_steps)
    run.tracker.events.add(event="AttemptStarted", step=done.step, lostSteps=run.tracker.lost_steps)
    run.tracker.note_progress(done.step, force=True)
    run.tracker.show(done)
    return done


def _measure_base(run: Run) -> Baseline:
    """The base model's scores: measured by the first attempt that gets so far, read by the others."""
    baseline = run.claim.records.baseline()
    if baseline is None:
        run.board.progress(stage=Stage.EVALUATING_BASE)
        with run.engine.model.disable_adapter():
            measured = run.evaluator.everything(_ticker(run))
        baseline = Baseline(metrics=finite(measured.metrics), answers=measured.answers)
        run.claim.records.record_baseline(baseline)
        log("the base model is measured", **baseline.metrics)
    run.board.update(baseline=baseline.metrics)
    return baseline


def _train_steps(run: Run, done: Progressed) -> Progressed:
    """All optimizer steps that are left. On SIGTERM: save between steps, then raise InterruptedRunError."""
    spec, engine, tracker = run.job.spec, run.engine, run.tracker
    saved = done.step  # nothing new to save yet
    run.board.progress(stage=Stage.TRAINING)
    randomness = capture_random()
    try:
        while True:
            done = _evaluate_between(run, done)
            if done.step > saved and (done.step % spec.checkpoint.every_steps == 0 or done.step == tracker.total_steps):
                _save(run, done, randomness)
                saved = done.step
            if done.step == tracker.total_steps:
                return done
            start = time.monotonic()
            result = engine.train_step(run.data.train, done.step, run.stop.check)
            if engine.schedule.follows_loss and spec.evaluation.every_steps is None:
                engine.schedule.observe(result.loss)
            randomness = capture_random()
            done = done.model_copy(update={"step": done.step + 1, "trained_tokens": done.trained_tokens + result.tokens})
            done = tracker.stepped(done, result, time.monotonic() - start, engine.schedule.learning_rate)
    except InterruptedRunError as interrupted:
        # A step that was begun has moved the generators: what is saved is the moment before it.
        if done.step > saved:
            _save(run, done, randomness)
        message = (
            f"{interrupted.message}: step {done.step} is saved" if done.step else f"{interrupted.message} before the first step"
        )
        raise InterruptedRunError(message, step=done.step) from None


def _evaluate_between(run: Run, done: Progressed) -> Progressed:
    """The validation loss where it is due after this step and not measured yet; a resumed run catches up here."""
    every = run.job.spec.evaluation.every_steps
    due = every is not None and done.step > 0 and done.step % every == 0 and done.evaluated_step != done.step
    if not due or not run.data.validation:
        return done
    run.board.progress(stage=Stage.EVALUATING)
    metrics = run.evaluator.loss_only(_ticker(run))
    run.engine.schedule.observe(metrics[EVAL_LOSS])
    done = done.model_copy(update={"evaluated_step": done.step, "metrics": {**done.metrics, **finite(metrics)}})
    run.board.point(done.step, eval_loss=metrics[EVAL_LOSS])
    run.board.offer_best(done.step, EVAL_LOSS, metrics[EVAL_LOSS])
    run.board.update(metrics=done.metrics)
    run.tracker.evaluated(done.step, metrics)
    run.board.progress(stage=Stage.TRAINING)
    return done


def _measure_tuned(run: Run, done: Progressed) -> Evaluated:
    """The tuned model's scores, by the code that measured the base."""
    run.board.progress(stage=Stage.EVALUATING)
    tuned = run.evaluator.everything(_ticker(run))
    if EVAL_LOSS in tuned.metrics:
        run.board.point(done.step, eval_loss=tuned.metrics[EVAL_LOSS])
        run.board.offer_best(done.step, EVAL_LOSS, tuned.metrics[EVAL_LOSS])
        run.tracker.evaluated(done.step, tuned.metrics)
    run.board.update(metrics={**done.metrics, **tuned.metrics})
    return tuned


def _save(run: Run, done: Progressed, randomness: RandomState) -> None:
    """A checkpoint of the moment after step `done.step`; what gathered for the attempt's folder goes along."""
    folder = run.scratch / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    done = done.model_copy(update={"curve": run.board.curve, "best": run.board.snapshot.best})
    save_state(folder, run.engine, done, randomness)
    about = {"specDigest": run.job.spec_digest}
    start = time.monotonic()
    status = save_checkpoint(run.claim.run, run.claim.attempt, done.step, folder, about)
    shutil.rmtree(folder)
    run.board.update(checkpoint=status)
    run.tracker.events.add(event="CheckpointSaved", step=done.step, digest=status.digest)
    run.tracker.note_progress(done.step, force=True)
    run.tracker.flush()
    with tolerated("old checkpoints are left behind"):
        prune_checkpoints(run.claim.run, run.claim.attempt, run.job.spec.checkpoint.keep)
    log("checkpoint saved", uri=status.uri, seconds=round(time.monotonic() - start, 2))


def _ticker(run: Run) -> Tick:
    def tick(done: int, of: int) -> None:
        run.board.progress(stage_percent=100 * done // of)
        run.stop.check()

    return tick


def _check_positions(data: Prepared, config: object, max_length: int) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    longest = max(len(example.ids) for example in (*data.train, *data.validation))
    if isinstance(limit, int) and longest > limit:
        raise ConfigurationError(
            Reason.ROW_TOO_LONG,
            f"data.maxLength {max_length} lets rows of {longest} tokens through, but this model reads {limit}: lower data.maxLength to {limit}",
        )


def _check_tokens(data: Prepared, known: int, uri: str) -> None:
    largest = max(int(example.ids.max()) for example in (*data.train, *data.validation))
    if largest >= known:
        raise ModelError(
            Reason.MODEL_UNSUPPORTED,
            f"the tokenizer of model.uri {uri} makes token {largest}, but the model knows {known} tokens (0 to {known - 1}):"
            " resize the model's embeddings to the tokenizer, or take the tokenizer that belongs to it",
        )


def _make_deterministic(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # It would fill every fresh tensor with NaN: a cost without a gain here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
