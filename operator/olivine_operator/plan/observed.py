"""What the plan sees of a FineTuneJob and its children: projections of raw objects, without what nobody reads (managedFields, templates)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from olivine_api import names
from olivine_api.status import Snapshot

Raw = Mapping[str, Any]

# Whoever sets it on a Job, Kueue itself included, makes Kueue the owner of its `suspend`.
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# On the child Job: which CA certificate its ConfigMap carries, so that nobody has to read it.
ANNOTATION_CA_DIGEST = f"{names.GROUP}/ca-digest"

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

    @property
    def key(self) -> Key:
        """Its place in cache and queue."""
        return self.namespace, self.name

    @classmethod
    def from_raw(cls, raw: Raw) -> "JobView":
        """From a FineTuneJob as the API server tells it."""
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
        )


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


def _key_by_label(metadata: Raw) -> Key:
    return metadata["namespace"], metadata["labels"][names.LABEL_JOB]


@dataclass(frozen=True, kw_only=True)
class ChildView:
    """A Job made for a FineTuneJob."""

    key: Key
    name: str
    uid: str
    owner_uid: str | None
    resource_version: str
    suspended: bool
    deleting: bool
    conditions: tuple[ChildCondition, ...]
    pods_since: datetime | None = None
    """Since when pods could be there: its creation, or when it was last resumed."""
    ca_digest: str = ""
    """Of the CA certificate that its ConfigMap carries."""
    queued: bool = False
    """Whether Kueue owns its `suspend`."""

    @classmethod
    def from_raw(cls, raw: Raw) -> "ChildView":
        """From a Job as the API server tells it."""
        metadata = raw["metadata"]
        return cls(
            key=_key_by_label(metadata),
            name=metadata["name"],
            uid=metadata["uid"],
            owner_uid=controller_uid(metadata),
            resource_version=metadata["resourceVersion"],
            suspended=bool(raw["spec"].get("suspend")),
            deleting="deletionTimestamp" in metadata,
            conditions=_conditions(raw.get("status", {}), "True"),
            pods_since=parse_time(raw.get("status", {}).get("startTime")) or _time_of_creation(metadata),
            ca_digest=metadata.get("annotations", {}).get(ANNOTATION_CA_DIGEST, ""),
            queued=KUEUE_QUEUE_LABEL in metadata["labels"],
        )

    def condition(self, kind: str) -> ChildCondition | None:
        """The condition of a type, where it holds."""
        return next((c for c in self.conditions if c.type == kind), None)

    @property
    def finished(self) -> bool:
        """Whether no further pod will come."""
        return self.condition("Complete") is not None or self.condition("Failed") is not None


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
class Obstacle:
    """Why a child could not be made: a Reason and a sentence. A permanent one ends the job."""

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
