"""What a plan asks for: a status, Events that tell of it, and changes to the children."""

from dataclasses import dataclass
from typing import Any, Literal

from olivine_api.status import FineTuneJobStatus
from olivine_operator.plan.observed import ChildKind


@dataclass(frozen=True, kw_only=True)
class EventDraft:
    """An Event about the FineTuneJob."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CreateChild:
    """Make the ConfigMap, the Service where pods have to find each other, then the Job or JobSet; all are complete manifests."""

    config_map: dict[str, Any]
    job: dict[str, Any]
    plain: dict[str, Any]
    """The same child without what the user's spec.pods asks for: whether it is refused too tells whose fault a refusal is."""
    service: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class SuspendChild:
    """Set the child's spec.suspend."""

    name: str
    suspend: bool
    kind: ChildKind = "Job"


@dataclass(frozen=True, kw_only=True)
class DeleteChild:
    """Delete the child; its pods get their grace."""

    name: str
    uid: str
    kind: ChildKind = "Job"


@dataclass(frozen=True, kw_only=True)
class ResizeChild:
    """Change the size of a suspended Job; where the API server refuses that, delete it: it is made again when it resumes."""

    name: str
    uid: str
    pods: int
    resources: dict[str, Any] | None
    """The container's; None where they stay."""
    annotations: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class WriteConfig:
    """Write the changing part of the ConfigMap, then note its digest on the child of the same name."""

    name: str
    data: dict[str, str]
    digest: str
    kind: ChildKind = "Job"


@dataclass(frozen=True, kw_only=True)
class KeepConfigMap:
    """Make the ConfigMap where it is gone; one that is there stays as it is."""

    config_map: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class KeepService:
    """Make the Service where it is gone; one that is there stays as it is."""

    service: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExplainNoPod:
    """Find out why the Job controller makes no pod; the answer is an obstacle."""

    name: str
    likely: str
    """What to say where nothing is to be found."""


@dataclass(frozen=True, kw_only=True)
class ExplainSlowPod:
    """Find out what keeps kubelet from setting a pod up; an answer is an obstacle."""

    name: str


@dataclass(frozen=True, kw_only=True)
class SetWorkloadActive:
    """Set spec.active of Kueue's Workload: false evicts its pods and keeps them from being admitted."""

    name: str
    active: bool


@dataclass(frozen=True, kw_only=True)
class RemoveLostPod:
    """Declare a pod of a lost node failed by disruption, and remove it by force."""

    name: str
    uid: str
    message: str


Action = (
    CreateChild
    | SuspendChild
    | DeleteChild
    | ResizeChild
    | WriteConfig
    | KeepConfigMap
    | KeepService
    | ExplainNoPod
    | ExplainSlowPod
    | SetWorkloadActive
    | RemoveLostPod
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Carried out in this order: status, Events, actions. What fails is planned again from what is then observed."""

    status: FineTuneJobStatus | None = None
    """None where nothing is to be written."""
    events: tuple[EventDraft, ...] = ()
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
