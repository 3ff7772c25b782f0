"""What the plan sees of a FineTuneJob and its children: projections of raw objects, without what nobody reads (managedFields, templates)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from olivine_api import names
from olivine_api.bundle_build import BuildSnapshot
from olivine_api.status import Snapshot

Raw = Mapping[str, Any]

# Whoever sets it on a Job, Kueue itself included, makes Kueue the owner of its `suspend`.
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KUEUE_PREFIX = "kueue.x-k8s.io/"
# Of Kueue's Workloads: the uid of the object that each was made for.
KUEUE_JOB_UID_LABEL = f"{KUEUE_PREFIX}job-uid"
# On the child: what its ConfigMap says of the part that changes, so that nobody has to read it.
ANNOTATION_CONFIG_DIGEST = f"{names.GROUP}/config-digest"
# On the child: what spec.pods asked for when it was made or resized; Kueue may have admitted fewer pods.
ANNOTATION_PODS = f"{names.GROUP}/pods"
ANNOTATION_RESOURCES = f"{names.GROUP}/resources-digest"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
# Length of what child_name adds to a job's name.
CHILD_SUFFIX = 7
# JobSet: the only replicated job, and what its pods' names add to the child's.
REPLICATED_JOB = "trainer"
_CRITERIA_MET = "SuccessCriteriaMet"
ChildKind = Literal["Job", "JobSet"]
_DIGITS = 9

# A Job's or pod's place in the cache: its namespace and the FineTuneJob that its label names.
Key = tuple[str, str]


def parse_time(value: str | None) -> datetime | None:
    """A Kubernetes timestamp."""
    return datetime.fromisoformat(value) if value else None


def _time_of_creation(metadata: Raw) -> datetime:
    return datetime.fromisoformat(metadata["creationTimestamp"])


def controller_uid(metadata: Raw) -> str | None:
    """The uid of the owner that controls an object."""
    return next((ref["uid"] for ref in metadata.get("ownerReferences", ()) if ref.get("controller")), None)


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A FineTuneJob."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    labels: Mapping[str, str]
    deleting: bool
    spec: Raw
    status: Raw
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    """Kueue's only."""

    kind: ClassVar[str] = names.FINETUNEJOB_KIND

    @property
    def key(self) -> Key:
        """Its place in cache and queue."""
        return self.namespace, self.label

    @property
    def label(self) -> str:
        """What its children's label says: to which resource they belong."""
        return self.name

    @classmethod
    def from_raw(cls, raw: Raw) -> Self:
        """From the resource as the API server tells it."""
        metadata = raw["metadata"]
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
            generation=metadata["generation"],
            labels=metadata.get("labels", {}),
            deleting="deletionTimestamp" in metadata,
            spec=raw["spec"],
            status=raw.get("status", {}),
            annotations={k: v for k, v in metadata.get("annotations", {}).items() if k.startswith(KUEUE_PREFIX)},
        )


@dataclass(frozen=True, kw_only=True)
class BundleView(JobView):
    """An AdapterBundle."""

    update: str | None = None
    """The annotation that asks for an update."""

    kind: ClassVar[str] = names.ADAPTERBUNDLE_KIND

    @property
    def label(self) -> str:
        """What its children's label says: no FineTuneJob's name has a dot."""
        return f"{names.BUNDLE_PREFIX}{self.name}"

    @classmethod
    def from_raw(cls, raw: Raw) -> Self:
        """From the resource as the API server tells it."""
        return replace(super().from_raw(raw), update=raw["metadata"].get("annotations", {}).get(names.ANNOTATION_UPDATE))


@dataclass(frozen=True, kw_only=True)
class ChildCondition:
    """A condition of a Job or pod that holds."""

    type: str
    reason: str
    message: str
    since: datetime | None


def _conditions(status: Raw, wanted: str) -> tuple[ChildCondition, ...]:
    return tuple(
        ChildCondition(
            type=c["type"],
            reason=c.get("reason") or "",
            message=c.get("message") or "",
            since=parse_time(c.get("lastTransitionTime")),
        )
        for c in status.get("conditions") or ()
        if c.get("status") == wanted
    )


def _number(text: str | None) -> int | None:
    """A number that we or the Job controller wrote; others may write anything where they put our labels."""
    return int(text) if text is not None and text.isdecimal() and len(text) <= _DIGITS else None


def _key_by_label(metadata: Raw) -> Key:
    return metadata["namespace"], metadata["labels"][names.LABEL_JOB]


@dataclass(frozen=True, kw_only=True)
class ChildView:
    """A Job or JobSet made for a FineTuneJob, or the Job that a JobSet made."""

    key: Key
    name: str
    uid: str
    owner_uid: str | None
    resource_version: str
    suspended: bool
    deleting: bool
    conditions: tuple[ChildCondition, ...]
    kind: ChildKind = "Job"
    pods_since: datetime | None = None
    """Since when pods could be there: its creation, or when it was last resumed."""
    parallelism: int = 1
    """How many pods there are to be: the world size is read from here."""
    asked_pods: int | None = None
    """spec.pods.count when it was made or resized."""
    resources_digest: str = ""
    """Of spec.pods.resources then; of a build: of all that the spec gives its pod."""
    config_digest: str = ""
    """Of the changing part of its ConfigMap."""
    queued: bool = False
    """Whether Kueue owns its `suspend`."""

    @classmethod
    def from_raw(cls, raw: Raw) -> "ChildView":
        """From a Job or JobSet as the API server tells it."""
        metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status", {})
        annotations = metadata.get("annotations", {})
        jobset = "replicatedJobs" in spec
        pods = next((item["template"]["spec"] for item in spec["replicatedJobs"]), {}) if jobset else spec
        return cls(
            key=_key_by_label(metadata),
            name=metadata["name"],
            uid=metadata["uid"],
            owner_uid=controller_uid(metadata),
            resource_version=metadata["resourceVersion"],
            suspended=bool(spec.get("suspend")),
            deleting="deletionTimestamp" in metadata,
            conditions=_child_conditions(status),
            kind="JobSet" if jobset else "Job",
            pods_since=parse_time(status.get("startTime")) or _resumed_at(status) or _time_of_creation(metadata),
            parallelism=pods.get("parallelism", 1),
            asked_pods=_number(annotations.get(ANNOTATION_PODS)),
            resources_digest=annotations.get(ANNOTATION_RESOURCES, ""),
            config_digest=annotations.get(ANNOTATION_CONFIG_DIGEST, ""),
            queued=KUEUE_QUEUE_LABEL in metadata["labels"],
        )

    def condition(self, kind: str) -> ChildCondition | None:
        """The condition of a type, where it holds."""
        return next((c for c in self.conditions if c.type == kind), None)

    @property
    def succeeded(self) -> ChildCondition | None:
        """That the pod with index 0 has published. Complete comes only when all other pods are gone, which on a lost node never happens."""
        return self.condition("Complete") or self.condition(_CRITERIA_MET)

    def with_inner(self, inner: "ChildView") -> "ChildView":
        """A JobSet with what its Job says of its success."""
        met = inner.condition(_CRITERIA_MET)
        return replace(self, conditions=(*self.conditions, met)) if met is not None else self

    @property
    def finished(self) -> bool:
        """Whether no further pod will come."""
        return self.condition("Complete") is not None or self.condition("Failed") is not None

    @property
    def pods_owner(self) -> str:
        """Name of the Job that makes the pods."""
        return f"{self.name}-{REPLICATED_JOB}-0" if self.kind == "JobSet" else self.name


def _child_conditions(status: Raw) -> tuple[ChildCondition, ...]:
    """Those that hold, by the names that Jobs use."""
    return tuple(replace(c, type="Complete") if c.type == "Completed" else c for c in _conditions(status, "True"))


def _resumed_at(status: Raw) -> datetime | None:
    return next((c.since for c in _conditions(status, "False") if c.type == "Suspended"), None)


@dataclass(frozen=True, kw_only=True)
class WorkloadView:
    """Kueue's Workload of a child."""

    key: Key
    name: str
    uid: str
    owner_uid: str | None
    resource_version: str
    active: bool
    reserved: bool
    message: str
    """Why quota is not reserved."""

    @classmethod
    def from_raw(cls, raw: Raw) -> "WorkloadView":
        """From a Workload as the API server tells it; one that was made for others' Jobs gets a key that nobody asks for."""
        metadata, status = raw["metadata"], raw.get("status", {})
        owner = next((ref["name"] for ref in metadata.get("ownerReferences", ()) if ref.get("controller")), "")
        lacking = next((c for c in _conditions(status, "False") if c.type == "QuotaReserved"), None)
        return cls(
            key=(metadata["namespace"], owner[:-CHILD_SUFFIX]),
            name=metadata["name"],
            uid=metadata["uid"],
            owner_uid=controller_uid(metadata),
            resource_version=metadata["resourceVersion"],
            active=raw["spec"].get("active", True) is not False,
            reserved=any(c.type == "QuotaReserved" for c in _conditions(status, "True")),
            message=lacking.message if lacking is not None else "",
        )


@dataclass(frozen=True, kw_only=True)
class Termination:
    """How a container ended."""

    exit_code: int
    reason: str
    message: str
    at: datetime | None


@dataclass(frozen=True, kw_only=True)
class PodView:
    """A trainer pod."""

    key: Key
    name: str
    uid: str
    owner_uid: str | None
    resource_version: str
    job_uid: str
    created: datetime
    deleting: bool
    phase: str
    reason: str
    """Of the pod itself: Evicted, NodeLost, …"""
    node: str
    memory_limit: str | None
    scheduled_at: datetime | None
    unschedulable: ChildCondition | None
    disruption: ChildCondition | None
    running: bool
    waiting_reason: str
    waiting_message: str
    termination: Termination | None
    index: int = 0
    """Its completion index: 0 leads, and alone knows how the training goes."""
    started_at: datetime | None = None
    gone_by: datetime | None = None
    """Of one that is to go: when its grace ends."""
    accelerators: int = 0

    @classmethod
    def from_raw(cls, raw: Raw) -> "PodView":
        """From a pod as the API server tells it."""
        metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status", {})
        holding, lacking = _conditions(status, "True"), _conditions(status, "False")
        state = _container_state(status)
        waiting, ended = state.get("waiting") or {}, state.get("terminated")
        containers = spec.get("containers") or [{}]
        return cls(
            key=_key_by_label(metadata),
            name=metadata["name"],
            uid=metadata["uid"],
            owner_uid=controller_uid(metadata),
            resource_version=metadata["resourceVersion"],
            job_uid=metadata["labels"].get(names.LABEL_JOB_UID, ""),
            created=_time_of_creation(metadata),
            deleting="deletionTimestamp" in metadata,
            phase=status.get("phase", "Pending"),
            reason=status.get("reason", ""),
            node=spec.get("nodeName", ""),
            memory_limit=containers[0].get("resources", {}).get("limits", {}).get("memory"),
            scheduled_at=next((c.since for c in holding if c.type == "PodScheduled"), None),
            unschedulable=next((c for c in lacking if c.type == "PodScheduled" and c.reason == "Unschedulable"), None),
            disruption=next((c for c in holding if c.type == "DisruptionTarget"), None),
            running="running" in state,
            waiting_reason=waiting.get("reason", ""),
            waiting_message=waiting.get("message", ""),
            termination=_termination(ended) if ended else None,
            index=_number(metadata["labels"].get(INDEX_LABEL)) or 0,
            started_at=parse_time((state.get("running") or ended or {}).get("startedAt")),
            gone_by=parse_time(metadata.get("deletionTimestamp")),
            accelerators=_accelerators(containers[0].get("resources", {}).get("limits", {})),
        )

    @property
    def leaving(self) -> bool:
        """Whether it is to go, and is still there."""
        return self.deleting and self.phase not in ("Succeeded", "Failed")

    @property
    def active(self) -> bool:
        """Whether it runs, or is to run."""
        return self.phase not in ("Succeeded", "Failed") and not self.deleting


def _container_state(status: Raw) -> Raw:
    statuses = status.get("containerStatuses") or ()
    return statuses[0].get("state", {}) if statuses else {}


def _accelerators(limits: Raw) -> int:
    """Devices of vendors' plug-ins: nvidia.com/gpu, amd.com/gpu, google.com/tpu, …"""
    counts = [str(amount) for name, amount in limits.items() if "/" in name and "kubernetes.io/" not in name]
    return sum(int(count) for count in counts if count.isdecimal())


def _termination(ended: Raw) -> Termination:
    return Termination(
        exit_code=ended["exitCode"],
        reason=ended.get("reason", ""),
        message=ended.get("message", ""),
        at=parse_time(ended.get("finishedAt")),
    )


@dataclass(frozen=True, kw_only=True)
class Report:
    """The newest snapshot that a trainer pod sent."""

    snapshot: Snapshot
    received_at: datetime


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """The newest snapshot that a builder pod sent."""

    snapshot: BuildSnapshot
    received_at: datetime


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why a child could not be made, or makes no pod: a Reason and a sentence. A permanent one ends the job."""

    reason: str
    message: str
    permanent: bool = False


@dataclass(frozen=True, kw_only=True)
class Observed:
    """All that a plan is made from, beside the clock and the settings."""

    job: JobView
    child: ChildView | None = None
    pods: tuple[PodView, ...] = ()
    report: Report | None = None
    written_at: datetime | None = None
    """When this process last wrote the job's status."""
    obstacle: Obstacle | None = None
    ca_certificate: str = ""
    workload: WorkloadView | None = None
    serves_jobsets: bool = False
    """Whether the cluster has JobSets."""
    serves_workloads: bool = False
    """Whether the cluster has Kueue."""


@dataclass(frozen=True, kw_only=True)
class NamespaceView:
    """A namespace: which policy holds there."""

    name: str
    uid: str
    resource_version: str
    labels: Mapping[str, str]

    @property
    def key(self) -> Key:
        """Its place in the cache: it belongs to no FineTuneJob."""
        return self.name, ""

    @classmethod
    def from_raw(cls, raw: Raw) -> "NamespaceView":
        """From a namespace as the API server tells it."""
        metadata = raw["metadata"]
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
            labels=metadata.get("labels", {}),
        )
