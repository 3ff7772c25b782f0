"""What the spec of a job that has started still decides. Read leniently: another release may have stored it."""

from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import ValidationError

from olivine_api.finetunejob import Retries
from olivine_operator.plan.observed import Raw

_BATCH_SIZE, _ACCUMULATION = 8, 1


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The members that change while a job lives, and those that healing needs; what cannot be read is the default."""

    suspend: bool = False
    cancel: bool = False
    retries: Retries = field(default_factory=Retries)
    pods: int = 1
    processes_per_pod: int = 1
    resources: Raw | None = None
    batch_size: int = _BATCH_SIZE
    accumulation: int = _ACCUMULATION
    active_deadline_seconds: int | None = None
    queue_deadline_seconds: int | None = None
    ttl_seconds: int | None = None

    @classmethod
    def read(cls, spec: Raw) -> Self:
        """From a FineTuneJob's spec as it is stored."""
        pods, training = _part(spec, "pods"), _part(spec, "training")
        resources = pods.get("resources")
        return cls(
            suspend=spec.get("suspend") is True,
            cancel=spec.get("cancel") is True,
            retries=_retries(spec),
            pods=_count(pods.get("count")) or 1,
            processes_per_pod=_count(pods.get("processesPerPod")) or 1,
            resources=resources if isinstance(resources, dict) else None,
            batch_size=_count(training.get("batchSize")) or _BATCH_SIZE,
            accumulation=_count(training.get("gradientAccumulationSteps")) or _ACCUMULATION,
            active_deadline_seconds=_count(spec.get("activeDeadlineSeconds")),
            queue_deadline_seconds=_count(spec.get("queueDeadlineSeconds")),
            ttl_seconds=_count(spec.get("ttlSecondsAfterFinished"), least=0),
        )


def _part(spec: Raw, name: str) -> Raw:
    part = spec.get(name)
    return part if isinstance(part, dict) else {}


def _count(value: Any, *, least: int = 1) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= least else None


def _retries(spec: Raw) -> Retries:
    try:
        return Retries.model_validate(_part(spec, "retries"))
    except ValidationError:
        # The defaults, rather than a running job that ends.
        return Retries()
