"""FineTuneJob's status, and the snapshot of it that the trainer reports. Everything is bounded: an object stays under 64 KiB."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from olivine_api.base import StatusModel
from olivine_api.exit_codes import Category

Message = Annotated[str, StringConstraints(max_length=1024)]
ReasonText = Annotated[str, StringConstraints(max_length=128)]
ShortText = Annotated[str, StringConstraints(max_length=253)]
Sentence = Annotated[str, StringConstraints(max_length=320)]
# spec.storage.uri, and below it namespace, name, uid, folder and digest.
StorageUri = Annotated[str, StringConstraints(max_length=1400)]
Digest = Annotated[str, StringConstraints(max_length=128)]
MetricMap = Annotated[dict[Annotated[str, StringConstraints(max_length=64)], float], Field(max_length=32)]

CURVE_LIMIT = 64


class Phase(StrEnum):
    """A summary of the conditions, for people."""

    PENDING = "Pending"
    VALIDATING = "Validating"
    QUEUED = "Queued"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """The conditions of a FineTuneJob; Reconciling and Stalled follow kstatus."""

    VALIDATED = "Validated"
    QUOTA_RESERVED = "QuotaReserved"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    EVALUATED = "Evaluated"
    PUBLISHED = "Published"
    COMPLETE = "Complete"
    FAILED = "Failed"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Condition(StatusModel):
    """metav1.Condition."""

    type: ShortText
    status: Literal["True", "False", "Unknown"]
    reason: ReasonText
    message: Message = ""
    observed_generation: int | None = None
    last_transition_time: datetime


class Stage(StrEnum):
    """What the trainer is doing."""

    STARTING = "Starting"
    LOADING_MODEL = "LoadingModel"
    EVALUATING_BASE = "EvaluatingBase"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PUBLISHING = "Publishing"


class Progress(StatusModel):
    """How far the trainer is."""

    stage: Stage
    step: Annotated[int, Field(ge=0)] = 0
    total_steps: Annotated[int, Field(ge=0)] | None = None
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Of the optimizer steps."""
    epoch: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    """Until the end of training, evaluation not counted."""
    stage_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Of an evaluation."""
    last_update_time: datetime | None = None
    """The trainer's last sign of life."""
    trained_tokens: int | None = None


class Best(StatusModel):
    """The best evaluation so far."""

    step: int
    metric: ShortText
    value: float


class CurvePoint(StatusModel):
    """One point of the curves."""

    step: int
    train_loss: float | None = None
    eval_loss: float | None = None


class ResolvedModel(StatusModel):
    """The base model as found."""

    uri: StorageUri
    digest: Digest
    """sha256 over the sorted (path, sha256) of its files."""
    revision: ShortText | None = None
    """The hub's commit that model.revision named when the run began."""
    license: ShortText | None = None
    """As the model card (README.md) says; several are separated by commas."""
    parameters: int | None = None


class ResolvedData(StatusModel):
    """The rows as found."""

    rows: int
    validation_rows: int
    digest: Digest
    dropped: int = 0
    truncated: int = 0
    tokens: int | None = None
    """Tokens of the training rows."""
    learned_tokens: int | None = None
    """Tokens of the training rows that count in the loss."""
    test_rows: int = 0
    duplicates: int = 0
    """Training rows that data.clean.deduplicate removed."""
    empty: int = 0
    """Training rows that data.clean.dropEmpty removed."""
    leaked: int = 0
    """Training rows that were removed because data.validation or data.test has them too."""


class Resolved(StatusModel):
    """What the spec's names and defaults turned out to be."""

    model: ResolvedModel | None = None
    data: ResolvedData | None = None
    effective_batch_size: int | None = None
    precision: ShortText | None = None
    world_size: int | None = None
    trainable_parameters: int | None = None
    image: ShortText | None = None
    """What the trainer pods were made from."""


class CheckpointStatus(StatusModel):
    """The newest complete checkpoint."""

    uri: StorageUri
    step: int
    digest: Digest
    saved_at: datetime


ArtifactKind = Literal["Adapter", "Model", "Onnx"]


class Artifact(StatusModel):
    """Something published."""

    kind: ArtifactKind
    """Adapter: on top of a base model. Model: a whole one, in Hugging Face layout with its tokenizer. Onnx: a folder for onnxruntime-genai."""
    uri: StorageUri
    digest: Digest
    """sha256 over the sorted (path, sha256) of its files."""
    bytes: int


class Failure(StatusModel):
    """The last failure."""

    category: Category
    reason: ReasonText
    message: Message
    at: datetime | None = None
    step: int | None = None


class Diagnosis(StatusModel):
    """Something about the training that its user should know."""

    code: ReasonText
    message: Sentence
    advice: Sentence = ""


class Estimate(StatusModel):
    """Before the first step, from one probe step."""

    memory_bytes: int
    """At the peak of the leading process: of its device where there is one, else of its whole memory."""
    seconds: int | None = None
    """Of the steps that are left."""


class Utilization(StatusModel):
    """Shares of the time since the last log line, of the leading process."""

    cpu: float | None = None
    """Of its threads."""
    gpu: float | None = None
    """Of its device, at the last log line."""
    input: float | None = None
    """Of the steps' time that went into preparing rows."""


class Child(StatusModel):
    """The training child: from here on the spec is fixed."""

    kind: Literal["Job", "JobSet"] = "Job"
    name: ShortText


class Snapshot(StatusModel):
    """Everything that the trainer knows, whole in each report: the newest one is enough."""

    attempt: int = 0
    """0 until the attempt number is taken."""
    pod: ShortText = ""
    progress: Progress
    metrics: MetricMap = {}
    baseline: MetricMap = {}
    """The same metrics of the base model."""
    best: Best | None = None
    curve: Annotated[list[CurvePoint], Field(max_length=CURVE_LIMIT)] = []
    resolved: Resolved = Resolved()
    checkpoint: CheckpointStatus | None = None
    lost_steps: int = 0
    """Steps that had to be trained again after failures, all attempts together."""
    resumed_from_step: int | None = None
    estimate: Estimate | None = None
    peak_memory_bytes: int | None = None
    utilization: Utilization | None = None
    artifacts: Annotated[list[Artifact], Field(max_length=8)] = []
    storage_uri: StorageUri | None = None
    """<storage.uri>/<namespace>/<name>/<uid>"""


class TerminationMessage(StatusModel):
    """What PID 1 leaves in the termination log, at most 4 KiB."""

    category: Category | None = None
    """Absent where the pod ended well."""
    reason: ReasonText
    message: Message
    step: int | None = None
    attempt: int | None = None
    """Absent until the pod knew which attempt it worked for."""
    snapshot: Snapshot | None = None
    """Of the pod with index 0 only: it knows what the others know."""


class World(StatusModel):
    """How many trainer pods there are, as the training child has it."""

    pods: Annotated[int, Field(ge=1, le=1024)] = 1
    processes_per_pod: Annotated[int, Field(ge=1, le=64)] = 1


class Overrides(StatusModel):
    """What the operator changed of the training to heal it; the effective batch stays the same."""

    batch_size: Annotated[int, Field(ge=1, le=4096)]
    gradient_accumulation_steps: Annotated[int, Field(ge=1)]


class JobIdentity(StatusModel):
    """Which resource a trainer pod works for."""

    namespace: ShortText
    name: ShortText
    uid: ShortText
    child: ShortText
    """Name of the training child."""


class Trials(StatusModel):
    """How many trials of a search are in which state."""

    total: Annotated[int, Field(ge=0)]
    running: Annotated[int, Field(ge=0)] = 0
    succeeded: Annotated[int, Field(ge=0)] = 0
    failed: Annotated[int, Field(ge=0)] = 0
    pruned: Annotated[int, Field(ge=0)] = 0


class BestTrial(StatusModel):
    """The best trial so far; its own resource has its parameters."""

    name: ShortText
    value: float
    """Of search.metric."""


class FineTuneJobStatus(StatusModel):
    """What the operator tells of a job."""

    observed_generation: int | None = None
    phase: Phase | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    start_time: datetime | None = None
    """When the first pod ran."""
    completion_time: datetime | None = None
    child: Child | None = None
    progress: Progress | None = None
    metrics: MetricMap = {}
    baseline: MetricMap = {}
    best: Best | None = None
    curve: Annotated[list[CurvePoint], Field(max_length=CURVE_LIMIT)] = []
    """At most 64 points, thinned, not cut."""
    resolved: Resolved | None = None
    checkpoint: CheckpointStatus | None = None
    lost_steps: int = 0
    restarts: int = 0
    """Incidents that cost a pod and were survived or ended the job."""
    restart_times: Annotated[list[datetime], Field(max_length=64)] = []
    """The newest of them, for retries.windowSeconds."""
    crashes: int = 0
    """Crashes in a row since the newest checkpoint; more than 3 end the job."""
    attempt: int = 0
    last_failure: Failure | None = None
    next_retry_time: datetime | None = None
    overrides: Overrides | None = None
    """Set where the operator made the micro-batch smaller after a pod ran out of memory."""
    running_seconds: Annotated[int, Field(ge=0)] = 0
    """In Running, all attempts together; compared with spec.activeDeadlineSeconds."""
    pod_seconds: Annotated[int, Field(ge=0)] = 0
    """Of all trainer pods together."""
    accelerator_seconds: Annotated[int, Field(ge=0)] = 0
    """The same, times each pod's accelerators."""
    metered_time: datetime | None = None
    """Until when these three are counted."""
    diagnosis: Annotated[list[Diagnosis], Field(max_length=6)] = []
    estimate: Estimate | None = None
    peak_memory_bytes: int | None = None
    utilization: Utilization | None = None
    artifacts: Annotated[list[Artifact], Field(max_length=8)] = []
    storage_uri: StorageUri | None = None
    trials: Trials | None = None
    """Of a search."""
    best_trial: BestTrial | None = None
    """Of a search."""


def thin_curve(points: list[CurvePoint], limit: int = CURVE_LIMIT) -> list[CurvePoint]:
    """At most `limit` points, evenly picked, first and last always among them."""
    if len(points) <= limit:
        return list(points)
    picked = sorted({round(i * (len(points) - 1) / (limit - 1)) for i in range(limit)})
    return [points[i] for i in picked]
