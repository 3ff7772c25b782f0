"""The optimisation."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel, Rule
from olivine_api.parameters import Plugin


class Scheduler(StrEnum):
    """Learning-rate schedules: every name that transformers knows."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_LR_ON_PLATEAU = "reduce_lr_on_plateau"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    COSINE_WARMUP_WITH_MIN_LR = "cosine_warmup_with_min_lr"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    GREEDY = "greedy"


class Optimizer(StrEnum):
    """Optimizers, by their names in transformers."""

    ADAMW_TORCH = "adamw_torch"
    ADAMW_TORCH_FUSED = "adamw_torch_fused"
    ADAMW_8BIT = "adamw_8bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    ADAFACTOR = "adafactor"
    SGD = "sgd"


class BuiltInLoss(StrEnum):
    """Losses of the learned tokens that need no class of one's own."""

    CROSS_ENTROPY = "cross_entropy"
    LABEL_SMOOTHING = "label_smoothing"
    FOCAL = "focal"


# What each takes: a number's bounds, the lower one included.
LOSS_PARAMETERS: Final[Mapping[BuiltInLoss, Mapping[str, tuple[float, float]]]] = {
    BuiltInLoss.CROSS_ENTROPY: {},
    BuiltInLoss.LABEL_SMOOTHING: {"smoothing": (0.0, 1.0)},
    BuiltInLoss.FOCAL: {"gamma": (0.0, 100.0)},
}


def _loss_parameters_fit(loss: Plugin | None) -> bool:
    if loss is None or loss.config_map is not None or loss.name not in tuple(BuiltInLoss):
        return True
    known = LOSS_PARAMETERS[BuiltInLoss(loss.name)]
    return all(
        name in known and type(value) is float and known[name][0] <= value < known[name][1]
        for name, value in (loss.parameters or {}).items()
    )


class Precision(StrEnum):
    """Number format of the computation; master weights stay fp32."""

    AUTO = "Auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class EarlyStopping(ApiModel):
    """Stop where an evaluation metric no longer improves."""

    metric: Annotated[str, StringConstraints(min_length=1, max_length=64)] = "eval_loss"
    """One of the validation rows: eval_loss, or a name of evaluation.metrics. Those of data.test and benchmarks are for gates."""
    mode: Literal["min", "max"] = "min"
    patience: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Evaluations without an improvement."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A smaller change is none."""


class Sharing(ApiModel):
    """Whether equal jobs may share a pod and its frozen base."""

    mode: Literal["Never", "Auto"] = "Never"


class Training(ApiModel):
    """The optimisation."""

    rules = (
        Rule(
            cel="has(self.maxSteps) != has(self.epochs)",
            holds=lambda t: (t.max_steps is None) != (t.epochs is None),
            message="training needs exactly one of maxSteps and epochs",
        ),
        Rule(
            cel="!has(self.maxSteps) || self.warmupSteps <= self.maxSteps",
            holds=lambda t: t.max_steps is None or t.warmup_steps <= t.max_steps,
            message="training.warmupSteps must not exceed training.maxSteps",
        ),
        Rule(
            cel="!has(self.loss) || has(self.loss.configMap) || self.loss.name in ['cross_entropy', 'label_smoothing', 'focal']",
            holds=lambda t: t.loss is None or t.loss.config_map is not None or t.loss.name in tuple(BuiltInLoss),
            message="training.loss.name is no built-in loss: write cross_entropy, label_smoothing or focal, or give a class of your own"
            " by configMap, key and class",
            field_path=".loss.name",
        ),
        Rule(
            holds=lambda t: _loss_parameters_fit(t.loss),
            message="training.loss.parameters does not suit the loss: label_smoothing takes smoothing (from 0 to below 1), focal takes"
            " gamma (from 0 to below 100), cross_entropy takes none",
        ),
    )

    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps."""
    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Passes over the training rows."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-4
    scheduler: Scheduler = Scheduler.COSINE
    scheduler_parameters: (
        Annotated[dict[str, Annotated[str, StringConstraints(max_length=64)] | float], Field(max_length=16)] | None
    ) = None
    """Further arguments of the scheduler, as transformers names them, e.g. num_cycles: 2."""
    warmup_steps: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    """Rows per process and micro-step; effective: batchSize x gradientAccumulationSteps x processes."""
    eval_batch_size: Annotated[int, Field(ge=1, le=4096)] = 8
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] = 1
    group_by_length: bool | None = None
    """Steps of rows of similar length: less padding, losses that vary more from step to step (docs/decisions/0081)."""
    optimizer: Optimizer = Optimizer.ADAMW_TORCH
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    precision: Precision = Precision.AUTO
    """Auto: bf16 where the accelerator computes it, fp32 on CPU."""
    gradient_checkpointing: bool = False
    data_loader_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Further processes beside each training process that render and tokenise rows: all of them before training, and those of the coming
    steps where rows are made while training (data.streaming, data.augmentation). 0: the training process does it. The batches are the same."""
    logging_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 0
    early_stopping: EarlyStopping | None = None
    loss: Plugin | None = None
    """cross_entropy (the default), label_smoothing, focal, or a class of one's own."""
    sharing: Sharing | None = None
