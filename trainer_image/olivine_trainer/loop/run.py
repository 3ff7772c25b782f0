"""One attempt, set up: model, data, engine and evaluator, checked against one another."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from olivine_api.finetunejob import FineTuneJobSpec
from olivine_api.reasons import Reason
from olivine_api.status import Resolved, ResolvedModel
from olivine_trainer.data.ahead import RowsAhead
from olivine_trainer.data.batches import total_steps
from olivine_trainer.data.grouping import GroupedRows
from olivine_trainer.data.prepare import Prepared, prepare_examples
from olivine_trainer.data.workers import Workers
from olivine_trainer.errors import ConfigurationError, ModelError
from olivine_trainer.evaluation.evaluate import Evaluator
from olivine_trainer.evaluation.keys import require_followed, require_measured
from olivine_trainer.job import Job
from olivine_trainer.loop.agreement import Agreement
from olivine_trainer.loop.answers import has_head, label_scorer
from olivine_trainer.loop.claim import Claim, Sources
from olivine_trainer.loop.engine import Engine, build_engine, make_accelerator
from olivine_trainer.loop.measured import measures_for, row_sets
from olivine_trainer.loop.micro import MicroBatch, eval_batch
from olivine_trainer.loop.state import seed_random, seed_rank
from olivine_trainer.loop.stop import StopFlag
from olivine_trainer.loop.tracker import Tracker, tensorboard_for
from olivine_trainer.loop.uploads import Uploads
from olivine_trainer.losses.conformance import check_conformance, probe_rows
from olivine_trainer.losses.own import OwnLoss
from olivine_trainer.methods.choose import base_dtype, quantization
from olivine_trainer.modeling.forward import collate
from olivine_trainer.modeling.loading import embeddings, fitted_to, load_model, load_tokenizer
from olivine_trainer.modeling.precision import resolve_precision
from olivine_trainer.plugins import OwnClass, import_own
from olivine_trainer.reporting.board import Board
from olivine_trainer.reporting.logs import log, warn
from olivine_trainer.world.world import World


@dataclass(frozen=True)
class Run:
    """One attempt, set up: what every stage below works with."""

    job: Job
    claim: Claim
    board: Board
    stop: StopFlag
    scratch: Path
    world: World
    agreement: Agreement
    micro: MicroBatch
    data: Prepared
    engine: Engine
    evaluator: Evaluator
    tracker: Tracker
    uploads: Uploads
    workers: Workers
    sources: Sources

    def close(self) -> None:
        """End what works beside training, whatever ended that."""
        if isinstance(self.data.train, RowsAhead):
            self.data.train.close()
        self.workers.close()
        self.uploads.close()


def set_up(
    job: Job,
    claim: Claim,
    sources: Sources,
    *,
    board: Board,
    stop: StopFlag,
    scratch: Path,
    world: World,
    micro_batch: int | None,
    effective_batch: int,
) -> Run:
    """Everything that training needs, on its device.

    `micro_batch`: at most so many rows at once, whatever the specification says. `effective_batch`: rows of an optimizer step. Raises ModelError, DataError, ConfigurationError, OutOfMemoryError.
    """
    spec, uri = job.spec, job.spec.model.uri
    _make_deterministic(spec.training.seed)
    own_loss, measures = own_loss_of(job), measures_for(job)
    precision = resolve_precision(spec.training.precision)
    accelerator = make_accelerator(precision, world)
    micro = _micro_batch(spec.training.batch_size, micro_batch, world)
    trusted = spec.model.trust_remote_code
    workers = Workers(spec.training.data_loader_workers)
    tokenizer = load_tokenizer(sources.model.folder, uri, trust_remote_code=trusted)
    base = load_model(
        sources.model.folder,
        uri,
        base_dtype(spec.method, precision.base_dtype),
        quantization=quantization(spec.method),
        labels=sources.rows.labels.names if has_head(spec) and sources.rows.labels is not None else (),
        trust_remote_code=trusted,
    )
    stop.check()
    tokenizer = fitted_to(base, tokenizer)
    start = time.monotonic()
    data = prepare_examples(
        spec.data, sources.rows, tokenizer.backend, stop_ids=tokenizer.stop_ids, for_head=has_head(spec), workers=workers
    )
    log("the rows are tokenised", seconds=round(time.monotonic() - start, 2), workers=workers.count)
    _check_positions(data, base.config, spec.data.max_length)
    _check_tokens(data, embeddings(base), uri)
    parameters = base.num_parameters()
    steps = total_steps(
        spec.training.max_steps,
        spec.training.epochs,
        rows=len(data.train),
        batch=effective_batch,
    )
    if spec.training.group_by_length:
        data = replace(data, train=GroupedRows(data.train, total_steps=steps))
    if workers.count and (spec.data.streaming or spec.data.augmentation):  # all other rows are examples by now
        data = replace(data, train=RowsAhead(data.train, total_steps=steps))
    engine = build_engine(
        spec,
        base,
        accelerator,
        world,
        total_steps=steps,
        effective_batch=effective_batch,
        pad_id=tokenizer.pad_id,
        own_loss=own_loss,
    )
    if spec.outputs is not None and spec.outputs.onnx is not None and world.leads:
        from olivine_trainer.bundle.probe import require_graph  # noqa: PLC0415  (seconds)

        require_graph(sources.model.folder, engine.method.adapted_modules)
    if isinstance(engine.loss, OwnLoss):
        with engine.whole():
            check_conformance(engine.loss, collate(probe_rows(data.some), tokenizer.pad_id, accelerator.device))
    seed_rank(spec.training.seed, world.rank)
    stop.check()
    resolved = Resolved(
        model=ResolvedModel(
            uri=uri,
            digest=sources.model.digest,
            revision=sources.model.revision,
            license=sources.model.license,
            parameters=parameters,
        ),
        data=data.resolved,
        effective_batch_size=engine.effective_batch,
        precision=precision.name.value,
        world_size=world.size,
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
        packing=engine.packed,
        ranks=world.size,
        weightsHere=parameters if engine.shards is None else engine.shards.held,
    )
    with engine.whole():  # whether the model reads many labels at once is tried
        scorer = label_scorer(spec, sources.rows, engine, tokenizer, longest=data.longest, device=accelerator.device)
    evaluator = Evaluator(
        loss=engine.loss,
        causal=engine.causal,
        tokenizer=tokenizer,
        examples=data.validation,
        batch_rows=lambda: eval_batch(spec.training.eval_batch_size, micro.rows, spec.training.batch_size),
        metrics=tuple(measures.values()),
        others=row_sets(spec, data, measures),
        samples=spec.evaluation.samples,
        device=accelerator.device,
        autocast=engine.autocast,
        scorer=scorer,
        world=world,
    )
    _require_measured(spec, evaluator)
    tracker = Tracker(
        spec=spec,
        claim=claim,
        board=board,
        total_steps=steps,
        rows=len(data.train),
        effective_batch=engine.effective_batch,
        tensorboard=tensorboard_for(spec, scratch) if world.leads else None,
        leads=world.leads,
    )
    return Run(
        job,
        claim,
        board,
        stop,
        scratch,
        world,
        Agreement(world, stop),
        micro,
        data,
        engine,
        evaluator,
        tracker,
        Uploads(world),
        workers,
        sources,
    )


def _require_measured(spec: FineTuneJobSpec, evaluator: Evaluator) -> None:
    """Raise ConfigurationError for a gate or an early stopping on what nobody measures."""
    for number, gate in enumerate(spec.evaluation.gates or ()):
        if gate.metric is not None:
            require_measured(f"evaluation.gates[{number}].metric", gate.metric, evaluator.keys)
    if spec.training.early_stopping is not None:
        metric = spec.training.early_stopping.metric
        require_followed("training.earlyStopping.metric", metric, evaluator.validation_keys, evaluator.keys)


def own_loss_of(job: Job) -> OwnClass | None:
    """The user's loss, imported. Raises ConfigurationError."""
    loss = job.spec.training.loss
    return import_own(loss, "training.loss", job.plugins) if loss is not None and loss.config_map is not None else None


def _micro_batch(asked: int, limit: int | None, world: World) -> MicroBatch:
    """The smallest that any rank was told: the kubelet brings a new limit to each pod in its own time."""
    rows = min(world.gather(min(asked, limit or asked)))
    if rows < asked:
        log("the micro-batch is smaller than specified, the effective batch is not", microBatch=rows, batchSize=asked)
    return MicroBatch(rows)


def _check_positions(data: Prepared, config: object, max_length: int) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and data.longest > limit:
        raise ConfigurationError(
            Reason.ROW_TOO_LONG,
            f"data.maxLength {max_length} lets rows of {data.longest} tokens through, but this model reads {limit}: lower data.maxLength to {limit}",
        )


def _check_tokens(data: Prepared, known: int, uri: str) -> None:
    if data.largest_token >= known:
        raise ModelError(
            Reason.MODEL_UNSUPPORTED,
            f"the tokenizer of model.uri {uri} makes token {data.largest_token}, but the model knows {known} tokens (0 to {known - 1}):"
            " resize the model's embeddings to the tokenizer, or take the tokenizer that belongs to it",
        )


def _make_deterministic(seed: int) -> None:
    seed_random(seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # It would fill every fresh tensor with NaN: a cost without a gain here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
