"""FineTuneJob: what a user writes. Field docstrings become the CRD's descriptions and the API reference."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel, Rule

# Bounds that keep an object small and CEL's cost estimate within the API server's budget.
Uri = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
FieldName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
TemplateText = Annotated[str, StringConstraints(min_length=1, max_length=8192)]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, StringConstraints(max_length=64)]

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_LIMIT = 40  # room for the child's suffix and the pod's index in a 63-character label

# A bucket and keys without empty or dotted parts: what an S3 server takes, and no path that means another.
_URI = r"^((s3|gs|az|pvc)://[A-Za-z0-9._-]+|file://|hf://[^/]+)(/[^/]+)*/?$"
_ENDPOINT = r"^https?://[^/\s]+/?$"
_PLACE_RULES = (
    Rule(
        cel=f"self.uri.matches(r'{_URI}') && !self.uri.matches(r'/[.][.]?(/|$)') && self.uri != 'file://' && self.uri != 'file:///'",
        holds=lambda place: (
            re.search(_URI, place.uri) is not None
            and re.search(r"/[.][.]?(/|$)", place.uri) is None
            and place.uri not in ("file://", "file:///")
        ),
        message="uri must be s3://bucket/path or file:///path, without empty, . or .. parts: other schemes are not served by this release",
        field_path=".uri",
    ),
    Rule(
        cel=f"!has(self.endpoint) || self.endpoint.matches(r'{_ENDPOINT}')",
        holds=lambda place: place.endpoint is None or re.search(_ENDPOINT, place.endpoint) is not None,
        message="endpoint must be the store's URL without a path: http://host:port or https://host:port",
        field_path=".endpoint",
    ),
)


class LocalObjectReference(ApiModel):
    """The name of an object in the same namespace."""

    name: ObjectName


class Task(StrEnum):
    """What the model is tuned for; decides the default metrics."""

    INSTRUCTION = "Instruction"
    CLASSIFICATION = "Classification"
    GENERATION = "Generation"


class Source(ApiModel):
    """Where something is read from."""

    rules = _PLACE_RULES

    uri: Uri
    """s3://bucket/path or file:///path (the latter only where the administrator allows it)."""
    secret_ref: LocalObjectReference | None = None
    """A Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where wanted, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION, CA_BUNDLE. Default: storage's, where the scheme is the same."""
    endpoint: Uri | None = None
    """URL of an S3-compatible store. Default: its own Secret's AWS_ENDPOINT_URL; without one, storage's, where the scheme is the same."""


class ModelCache(ApiModel):
    """A volume that pods share, so that a restart downloads nothing."""

    claim_name: ObjectName


class ModelSource(Source):
    """The base model: a folder in Hugging Face layout."""

    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    cache: ModelCache | None = None
    trust_remote_code: bool = False
    allowed_licenses: Annotated[list[FieldName], Field(min_length=1, max_length=64)] | None = None


class DataSource(Source):
    """Rows: .jsonl, .json (an array or lines), .csv or .parquet."""

    split: Annotated[str, StringConstraints(min_length=1, max_length=253)] | None = None


class Template(ApiModel):
    """How a row becomes text. {field} is replaced by the row's field; {{ and }} stand for braces."""

    rules = (
        Rule(
            cel="(has(self.text) ? 1 : 0) + (has(self.prompt) || has(self.completion) ? 1 : 0) + (has(self.messages) ? 1 : 0) == 1",
            holds=lambda t: (
                sum((t.text is not None, t.prompt is not None or t.completion is not None, t.messages is not None)) == 1
            ),
            message="data.template needs exactly one form: text, or prompt with completion, or messages",
        ),
        Rule(
            cel="has(self.prompt) == has(self.completion)",
            holds=lambda t: (t.prompt is None) == (t.completion is None),
            message="data.template.prompt and data.template.completion go together: write both, or use text",
        ),
    )

    text: TemplateText | None = None
    """The whole text, e.g. "User: {input}\\nAssistant: {output}"; every token of it is learned."""
    prompt: TemplateText | None = None
    """What the model is given."""
    completion: TemplateText | None = None
    """What the model is to answer."""
    messages: FieldName | None = None
    """The field that holds a chat: a list of {role, content}; rendered by the model's own chat template."""


class LossOn(StrEnum):
    """Which tokens are learned."""

    COMPLETION = "Completion"
    ALL = "All"


class OnOverflow(StrEnum):
    """What becomes of a row longer than maxLength."""

    FAIL = "Fail"
    DROP = "Drop"
    TRUNCATE = "Truncate"


class Data(ApiModel):
    """The rows, how they are split, and how they become text."""

    rules = (
        Rule(
            cel="!(has(self.validation) && has(self.validationFraction))",
            holds=lambda d: d.validation is None or d.validation_fraction is None,
            message="data.validation and data.validationFraction exclude each other: name a validation file, or take a fraction of train",
        ),
        Rule(
            cel="!has(self.stratifyBy) || has(self.validationFraction)",
            holds=lambda d: d.stratify_by is None or d.validation_fraction is not None,
            message="data.stratifyBy needs data.validationFraction: it says how the fraction is drawn",
        ),
        Rule(
            cel="!has(self.template.text) || self.lossOn == 'All'",
            holds=lambda d: d.template.text is None or d.loss_on is LossOn.ALL,
            message="data.lossOn must be All with data.template.text, which has no completion; or write prompt with completion",
        ),
    )

    train: DataSource
    validation: DataSource | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the training rows that is held back; seeded; equal rows stay on one side."""
    stratify_by: FieldName | None = None
    """Draw the same share of every value of this field."""
    template: Template
    loss_on: LossOn = LossOn.COMPLETION
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 1024
    """Tokens a row may have, its stop token included."""
    on_overflow: OnOverflow = OnOverflow.FAIL
    """Truncate cuts a prompt at its start and never the completion; status.resolved.data counts what happened."""


class MethodType(StrEnum):
    """How the model is adapted."""

    LORA = "LoRA"


class Lora(ApiModel):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Annotated[float, Field(gt=0, le=8192)] = 32
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with rsLora)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[list[FieldName], Field(min_length=1, max_length=64)] | None = None
    """Names of linear modules, e.g. q_proj. Default: every linear module but the head."""
    rs_lora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732)."""


class Method(ApiModel):
    """The method and its parameters."""

    type: MethodType
    lora: Lora = Lora()


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


class Precision(StrEnum):
    """Number format of the computation; master weights stay fp32."""

    AUTO = "Auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


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
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    precision: Precision = Precision.AUTO
    """Auto: bf16 where the accelerator computes it, fp32 on CPU."""
    gradient_checkpointing: bool = False
    logging_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 0


class MetricName(StrEnum):
    """Built-in metrics. eval_loss is always measured."""

    ACCURACY = "accuracy"
    PERPLEXITY = "perplexity"


class Metric(ApiModel):
    """One metric: accuracy is the share of answers that equal the completion exactly; perplexity is exp(eval_loss)."""

    name: MetricName


class Evaluation(ApiModel):
    """What is measured, of the base model first and of the tuned model after, by the same code."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Evaluate the validation loss every so many steps. Default: at the end only."""
    metrics: Annotated[list[Metric], Field(max_length=16)] | None = None
    """Default by task: accuracy for Classification, perplexity otherwise."""
    samples: Annotated[int, Field(ge=0, le=64)] = 8
    """How many answers of base and tuned model are kept beside the artifact."""


class Storage(ApiModel):
    """Where checkpoints and artifacts go: `<uri>/<namespace>/<name>/<uid>/`."""

    rules = _PLACE_RULES

    uri: Uri
    secret_ref: LocalObjectReference | None = None
    """A Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where wanted, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION, CA_BUNDLE. Optional with workload identity."""
    endpoint: Uri | None = None
    """URL of an S3-compatible store. Default: the Secret's AWS_ENDPOINT_URL."""


class Checkpoint(ApiModel):
    """When state is saved for an exact resume, and what is kept."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] = 50
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """The newest so many are kept while training."""
    keep_after_success: Annotated[int, Field(ge=0, le=1000)] = 0


class Tracking(ApiModel):
    """Where curves are written beside status."""

    tensorboard: bool = True
    """TensorBoard event files under attempts/<attempt>/tensorboard/."""


class EnvVar(ApiModel):
    """One environment variable with a literal value."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    value: Annotated[str, StringConstraints(max_length=4096)] = ""


class Toleration(ApiModel):
    """As in a pod."""

    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


ResourceList = Annotated[dict[str, int | Quantity], Field(max_length=16)]


class Resources(ApiModel):
    """As in a pod: cpu, memory, nvidia.com/gpu, …"""

    limits: ResourceList | None = None
    requests: ResourceList | None = None


class Pods(ApiModel):
    """The trainer pods. Defaults come from the chart."""

    resources: Resources | None = None
    image: Uri | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=16)] | None = None
    service_account_name: ObjectName | None = None
    priority_class_name: ObjectName | None = None
    node_selector: Annotated[dict[str, Annotated[str, StringConstraints(max_length=63)]], Field(max_length=32)] | None = None
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86_400)] = 120
    """Time for the last checkpoint after SIGTERM, seconds."""
    env: Annotated[list[EnvVar], Field(max_length=64)] | None = None


class Retries(ApiModel):
    """How many incidents are survived."""

    max_restarts: Annotated[int, Field(ge=0, le=10_000)] = 10
    """Incidents within the window; one more fails the job. An evicted or drained pod costs none."""
    window_seconds: Annotated[int, Field(ge=1, le=31_536_000)] = 3600


class FineTuneJobSpec(ApiModel):
    """A fine-tuning run."""

    rules = (
        Rule(
            cel="self.task != 'Classification' || has(self.data.template.prompt)",
            holds=lambda s: s.task is not Task.CLASSIFICATION or s.data.template.prompt is not None,
            message="task Classification needs data.template.prompt and data.template.completion: the completion is the label",
        ),
        Rule(
            cel="!has(self.evaluation.metrics) || has(self.data.template.prompt) || !self.evaluation.metrics.exists(m, m.name == 'accuracy')",
            holds=lambda s: (
                s.data.template.prompt is not None or all(m.name is not MetricName.ACCURACY for m in s.evaluation.metrics or ())
            ),
            message="metric accuracy needs data.template.prompt and data.template.completion: it compares answers with completions",
        ),
        Rule(
            cel="!has(self.evaluation.everySteps) || has(self.data.validation) || has(self.data.validationFraction)",
            holds=lambda s: (
                s.evaluation.every_steps is None or s.data.validation is not None or s.data.validation_fraction is not None
            ),
            message="evaluation.everySteps needs data.validation or data.validationFraction: there are no rows to evaluate on",
        ),
        Rule(
            cel="!has(self.evaluation.metrics) || has(self.data.validation) || has(self.data.validationFraction)",
            holds=lambda s: s.evaluation.metrics is None or s.data.validation is not None or s.data.validation_fraction is not None,
            message="evaluation.metrics needs data.validation or data.validationFraction: there are no rows to measure on",
        ),
        Rule(cel="!oldSelf.cancel || self.cancel", message="cancel is final: use a new name, or kubectl replace --force"),
        # The spec may change until the child exists; the rule over status is at the root of the resource.
    )

    task: Task
    model: ModelSource
    data: Data
    method: Method
    training: Training
    evaluation: Evaluation = Evaluation()
    storage: Storage
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    pods: Pods = Pods()
    suspend: bool = False
    """Pause: the pods save a checkpoint and go; false resumes from there."""
    cancel: bool = False
    """End for good, suspended or not; checkpoints stay."""
    retries: Retries = Retries()


# What a user may change once the child exists; everything else is part of what was trained.
MUTABLE_FIELDS = ("suspend", "cancel", "retries")


def parse_spec(raw: dict[str, Any]) -> FineTuneJobSpec:
    """The spec of a resource or manifest. Raises pydantic.ValidationError, whose messages name the fields."""
    return FineTuneJobSpec.model_validate(raw)
