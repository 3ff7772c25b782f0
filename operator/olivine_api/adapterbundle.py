"""AdapterBundle: adapters of one base model as one multi-adapter ONNX model. Field docstrings become the CRD's descriptions."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel, Rule, StatusModel
from olivine_api.finetunejob import Retries
from olivine_api.outputs import OnnxOutput
from olivine_api.pods import LabelSelector, Pods
from olivine_api.publish import Publish
from olivine_api.sources import OPTIONAL_PLACE_RULE, LocalObjectReference, ModelSource, Source, Storage, Uri
from olivine_api.status import Condition, Digest, Failure, Message, ShortText, StorageUri

ADAPTER_LIMIT = 64
AdapterName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]


class Adapter(ApiModel):
    """One adapter of the bundle."""

    rules = (
        Rule(
            cel="has(self.jobRef) != has(self.uri)",
            holds=lambda a: (a.job_ref is None) != (a.uri is None),
            message="an entry of adapters needs exactly one of jobRef and uri",
        ),
        Rule(
            cel="has(self.uri) || !(has(self.secretRef) || has(self.endpoint))",
            holds=lambda a: a.uri is not None or (a.secret_ref is None and a.endpoint is None),
            message="secretRef and endpoint of an adapter go with its uri: a job brings its own storage",
        ),
        OPTIONAL_PLACE_RULE,
        Rule(
            cel="self.name != 'base'",
            holds=lambda a: a.name != "base",
            message="an adapter cannot be named base: that is the model without adapters; choose another name",
            field_path=".name",
        ),
    )

    name: AdapterName
    """Its name in the bundle: adapters/NAME.onnx_adapter."""
    job_ref: LocalObjectReference | None = None
    """A FineTuneJob of the namespace."""
    uri: Uri | None = None
    """A peft directory, or an Olivine bottleneck adapter."""
    secret_ref: LocalObjectReference | None = None
    endpoint: Uri | None = None


class Onnx(OnnxOutput):
    """What the bundle is made for."""

    slots: Literal["Union", "AllLinear"] = "Union"
    """Which modules can take an adapter: those that some adapter uses, or every linear one."""


class Verify(ApiModel):
    """What each adapter must reach against PyTorch."""

    prompts: Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=4096)]], Field(max_length=64)] | None = None
    """Default: prompts of the jobs' validation rows."""
    max_logit_difference: Annotated[float, Field(ge=0)] = 0.001
    """Of the fp32 build."""
    min_greedy_agreement: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the fp32 build."""
    max_extra_kl: Annotated[float, Field(ge=0, alias="maxExtraKL")] = 0.05
    """Of the shipped build: mean KL divergence minus the base's own."""


class Retention(ApiModel):
    """What is kept of older versions, from the next version on."""

    versions: Annotated[int, Field(ge=1, le=100)] = 3


class BundleModel(Source):
    """The base model of all adapters."""

    rules = ModelSource.rules

    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=128)] | None = None


class AdapterBundleSpec(ApiModel):
    """A bundle of adapters."""

    rules = (
        Rule(
            cel="(has(self.adapters) && size(self.adapters) > 0) || has(self.selector)",
            holds=lambda s: bool(s.adapters) or s.selector is not None,
            message="adapters or selector: a bundle needs at least one of them",
        ),
        Rule(
            cel="!has(self.adapters) || self.adapters.all(a, self.adapters.exists_one(b, b.name == a.name))",
            holds=lambda s: len({adapter.name for adapter in s.adapters or ()}) == len(s.adapters or ()),
            message="two entries of adapters have the same name: give each its own",
            field_path=".adapters",
        ),
        Rule(
            cel="has(self.model) || !has(self.adapters) || self.adapters.all(a, has(a.jobRef))",
            holds=lambda s: s.model is not None or all(adapter.job_ref is not None for adapter in s.adapters or ()),
            message="model is needed where an adapter comes from a uri: only a FineTuneJob knows its base",
        ),
        Rule(
            cel="!has(self.selector) || !has(self.selector.matchExpressions)"
            " || self.selector.matchExpressions.all(e, !(e.operator in ['Gt', 'Lt']))",
            holds=lambda s: s.selector is None or all(e.operator not in ("Gt", "Lt") for e in s.selector.match_expressions or ()),
            message="selector.matchExpressions knows In, NotIn, Exists and DoesNotExist",
            field_path=".selector",
        ),
        Rule(
            cel="self.pods.count == 1 && self.pods.processesPerPod == 1",
            holds=lambda s: s.pods.count == 1 and s.pods.processes_per_pod == 1,
            message="a bundle is built by one pod with one process: leave pods.count and pods.processesPerPod out",
            field_path=".pods",
        ),
    )

    model: BundleModel | None = None
    """Optional where every adapter comes from a FineTuneJob; all must share one base."""
    adapters: Annotated[list[Adapter], Field(max_length=ADAPTER_LIMIT)] | None = None
    selector: LabelSelector | None = None
    """Every succeeded FineTuneJob of the namespace that matches; an adapter's name is its job's."""
    onnx: Onnx = Onnx()
    verify: Verify = Verify()
    storage: Storage
    publish: Publish | None = None
    """A second place for each version: another prefix, or a repository of a hub."""
    pods: Pods = Pods()
    update_policy: Literal["OnChange", "Manual"] = "OnChange"
    """Manual: finished jobs are gathered only when the spec changes, or the annotation olivine.dev/update gets another value."""
    retention: Retention = Retention()
    suspend: bool = False
    """Build nothing; a build that runs is ended, and goes on from what it has uploaded."""
    retries: Retries = Retries()
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = None


class BundlePhase(StrEnum):
    """A summary of the conditions, for people."""

    PENDING = "Pending"
    WAITING = "Waiting"
    BUILDING = "Building"
    VERIFYING = "Verifying"
    READY = "Ready"
    FAILED = "Failed"


class BaseStatus(StatusModel):
    """The base as built."""

    digest: Digest
    bytes: int
    precision: ShortText
    model_digest: Digest | None = None
    """Of the Hugging Face folder that it was built from."""
    model_uri: StorageUri | None = None
    model_revision: ShortText | None = None
    uri: StorageUri | None = None
    """Where it is kept for versions to come."""


class BundleStatus(StatusModel):
    """The newest version."""

    uri: StorageUri
    digest: Digest
    """sha256 over the sorted (path, sha256) of its payload."""
    version: int
    total_bytes: int
    merged_equivalent_bytes: int
    """What as many merged models would take."""


class AdapterStatus(StatusModel):
    """One adapter, with what was measured of it."""

    name: ShortText
    source: StorageUri
    digest: Digest | None = None
    rank: int | None = None
    targets: Annotated[list[ShortText], Field(max_length=64)] = []
    bytes: int | None = None
    max_logit_difference: float | None = None
    """Of the fp32 build from PyTorch, as are the two agreements."""
    top1_agreement: float | None = None
    """Share of the tokens where both find the same one likeliest."""
    greedy_agreement: float | None = None
    """Share of PyTorch's greedy answers' tokens up to the first that differs."""
    mean_kl: Annotated[float | None, Field(alias="meanKL")] = None
    """Divergence of the shipped build from PyTorch, over all tokens."""
    base_mean_kl: Annotated[float | None, Field(alias="baseMeanKL")] = None
    """The same of the base, with no adapter active, on the same texts."""
    shipped_top1_agreement: float | None = None
    """As top1Agreement, of the shipped build."""
    shipped_greedy_agreement: float | None = None
    """As greedyAgreement, of the shipped build."""
    load_milliseconds: float | None = None
    switch_microseconds: float | None = None
    overhead_percent: float | None = None
    model_digest: Digest | None = None
    """Of the base that it was trained on, where that is known."""
    version: int | None = None
    """The bundle's version that it came with; absent where no version has it."""
    selected: bool | None = None
    """Whether spec.selector found it, rather than spec.adapters naming it."""
    state: Literal["Ready", "Rejected", "Orphaned", "Waiting"]
    reason: Message | None = None


class BundleConditionType(StrEnum):
    """The conditions of an AdapterBundle; Reconciling and Stalled follow kstatus."""

    READY = "Ready"
    BUILT = "Built"
    VERIFIED = "Verified"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class BuildStatus(StatusModel):
    """The newest build: written down before its Job is made."""

    sequence: Annotated[int, Field(ge=1)]
    digest: Digest
    """Names its inputs."""
    generation: int
    """Of the spec that it was made from."""
    job: ShortText
    """Name of its Job."""
    update: ShortText | None = None
    """The annotation olivine.dev/update then."""
    stage: ShortText | None = None
    verified: int | None = None
    started_at: datetime | None = None
    """When its first pod ran."""
    finished_at: datetime | None = None
    failed: bool = False
    repeats: int | None = None
    """How many builds just before it came to an end that was not told whole."""


class BundleSummary(StatusModel):
    """For people: what `kubectl get` shows."""

    adapters: ShortText
    """Ready and all: 3/4."""
    size: ShortText | None = None
    worst_parity: float | None = None
    """The largest maxLogitDifference."""


class AdapterBundleStatus(StatusModel):
    """What the operator tells of a bundle."""

    observed_generation: int | None = None
    phase: BundlePhase | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    base: BaseStatus | None = None
    bundle: BundleStatus | None = None
    adapters: Annotated[list[AdapterStatus], Field(max_length=ADAPTER_LIMIT)] = []
    summary: BundleSummary | None = None
    build: BuildStatus | None = None
    restarts: int = 0
    """Incidents of the newest build that cost a pod."""
    restart_times: Annotated[list[datetime], Field(max_length=64)] = []
    last_failure: Failure | None = None
    next_retry_time: datetime | None = None
    selector_digest: Digest | None = None
    """Of the selector by which Orphaned adapters came: they go when it changes."""


def parse_bundle(raw: dict[str, Any]) -> AdapterBundleSpec:
    """The spec of an AdapterBundle. Raises pydantic.ValidationError, whose messages name the fields."""
    return AdapterBundleSpec.model_validate(raw)
