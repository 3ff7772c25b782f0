"""What a plan asks for: a status, Events that tell of it, and changes to the children."""

from dataclasses import dataclass
from typing import Any, Literal

from olivine_api.status import FineTuneJobStatus


@dataclass(frozen=True, kw_only=True)
class EventDraft:
    """An Event about the FineTuneJob."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CreateChild:
    """Make the ConfigMap, then the Job; both are complete manifests."""

    config_map: dict[str, Any]
    job: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SuspendChild:
    """Set the Job's spec.suspend."""

    name: str
    suspend: bool


@dataclass(frozen=True, kw_only=True)
class DeleteChild:
    """Delete the Job; its pods get their grace."""

    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class RefreshCa:
    """Put another CA certificate into the ConfigMap, then note it on the Job of the same name."""

    name: str
    certificate: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class KeepConfigMap:
    """Make the ConfigMap where it is gone; one that is there stays as it is."""

    config_map: dict[str, Any]


Action = CreateChild | SuspendChild | DeleteChild | RefreshCa | KeepConfigMap


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Carried out in this order: status, Events, actions. What fails is planned again from what is then observed."""

    status: FineTuneJobStatus | None = None
    """None where nothing is to be written."""
    events: tuple[EventDraft, ...] = ()
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
