"""What a job's numbers say about its training, and what its user may do about it. A function of status alone."""

from collections.abc import Callable

from olivine_api.status import CurvePoint, Diagnosis, FineTuneJobStatus

_EVAL_LOSS = "evalLoss"
# A validation loss this much above its best, twice in a row, is no noise of one evaluation.
_WORSE = 1.05
_EVALUATIONS_AFTER_BEST = 2
# A training loss this much above where it once was has left the valley.
_DIVERGED = 2.0
_LATEST_POINTS = 3
# A device that waits this long for rows, step after step, is paid for in vain.
_SLOW_INPUT = 0.25
# Fewer rows than one in a hundred change little.
_FEW = 0.01


def diagnose(status: FineTuneJobStatus) -> list[Diagnosis]:
    """What is to be said, the most serious first."""
    rules: tuple[Callable[[FineTuneJobStatus], Diagnosis | None], ...] = (
        _diverged,
        _no_improvement,
        _overfitting,
        _lost_rows,
        _slow_input,
        _smaller_batch,
    )
    return [found for rule in rules if (found := rule(status)) is not None]


def _diverged(status: FineTuneJobStatus) -> Diagnosis | None:
    losses = [(point.step, point.train_loss) for point in status.curve if point.train_loss is not None]
    if len(losses) <= _LATEST_POINTS:
        return None
    step, lowest = min(losses[:-_LATEST_POINTS], key=lambda item: item[1])
    latest = min(loss for _, loss in losses[-_LATEST_POINTS:])
    if lowest <= 0 or latest < _DIVERGED * lowest or latest < losses[0][1]:
        return None
    return Diagnosis(
        code="Diverged",
        message=f"the training loss was {lowest:.3g} at step {step} and has been at least {latest:.3g} lately",
        advice="lower training.learningRate, or raise training.warmupSteps",
    )


def _no_improvement(status: FineTuneJobStatus) -> Diagnosis | None:
    base, tuned = status.baseline.get(_EVAL_LOSS), status.metrics.get(_EVAL_LOSS)
    if not status.artifacts or base is None or tuned is None or tuned < base:
        return None
    return Diagnosis(
        code="NoImprovement",
        message=f"the tuned model's validation loss is {tuned:.3g}, the base model's {base:.3g}",
        advice="train longer, change training.learningRate, or look whether data.template matches what the model is asked",
    )


def _overfitting(status: FineTuneJobStatus) -> Diagnosis | None:
    points = [point for point in status.curve if point.eval_loss is not None]
    if not points:
        return None
    best = min(points, key=_eval_loss)
    later = [point for point in points if point.step > best.step]
    if len(later) < _EVALUATIONS_AFTER_BEST or any(
        _eval_loss(p) < _WORSE * _eval_loss(best) for p in later[-_EVALUATIONS_AFTER_BEST:]
    ):
        return None
    last = later[-1]
    return Diagnosis(
        code="Overfitting",
        message=f"the validation loss was lowest at step {best.step} ({_eval_loss(best):.3g}) and is {_eval_loss(last):.3g} at step {last.step}",
        advice=f"train for about {best.step} steps, add rows, or lower method.lora.rank or training.learningRate",
    )


def _eval_loss(point: CurvePoint) -> float:
    return point.eval_loss if point.eval_loss is not None else float("inf")


def _lost_rows(status: FineTuneJobStatus) -> Diagnosis | None:
    data = status.resolved.data if status.resolved is not None else None
    if data is None or data.truncated + data.dropped <= _FEW * (data.rows + data.dropped):
        return None
    parts = [f"{count} {what}" for count, what in ((data.truncated, "were cut"), (data.dropped, "were dropped")) if count]
    return Diagnosis(
        code="TruncatedData",
        message=f"of {data.rows + data.dropped} rows {' and '.join(parts)}, being longer than data.maxLength",
        advice="raise data.maxLength, or shorten the rows",
    )


def _slow_input(status: FineTuneJobStatus) -> Diagnosis | None:
    share = status.utilization.input if status.utilization is not None else None
    if share is None or share < _SLOW_INPUT:
        return None
    return Diagnosis(
        code="SlowInput",
        message=f"{share:.0%} of the steps' time goes into preparing rows",
        advice="raise training.dataLoaderWorkers, set data.streaming to false where the rows fit into memory, use fewer augmentations, or"
        " give the pods more CPU",
    )


def _smaller_batch(status: FineTuneJobStatus) -> Diagnosis | None:
    smaller = status.overrides
    if smaller is None:
        return None
    return Diagnosis(
        code="OutOfMemory",
        message=f"the pods ran out of memory: they go on with batchSize {smaller.batch_size} x gradientAccumulationSteps "
        f"{smaller.gradient_accumulation_steps}, the same effective batch",
        advice="write these values next time, or raise spec.pods.resources.limits.memory: larger pieces are faster",
    )
