"""Objects for the plan's tests, each with only what a case is about."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from olivine_api.status import Condition, FineTuneJobStatus, Overrides, Progress, Snapshot, Stage, World
from olivine_operator.plan.child import size_annotations
from olivine_operator.plan.live_config import digest_of, live_data
from olivine_operator.plan.observed import (
    ANNOTATION_RESOURCES,
    ChildCondition,
    ChildView,
    JobView,
    Observed,
    PodView,
    Report,
    Termination,
)
from olivine_operator.plan.outcome import Plan
from olivine_operator.plan.reconcile import plan
from olivine_operator.plan.settings import OperatorSettings, TrainerSettings
from olivine_operator.plan.wishes import Wishes

T0 = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
KEY = ("team-a", "tone")
SETTINGS = OperatorSettings(namespace="olivine-system", trainer=TrainerSettings(image="trainer:1"))
SPEC: dict[str, Any] = {
    "task": "Classification",
    "model": {"uri": "s3://models/tiny"},
    "data": {"train": {"uri": "s3://data/rows.jsonl"}, "template": {"prompt": "{a}", "completion": "{b}"}},
    "method": {"type": "LoRA"},
    "training": {"maxSteps": 10},
    "storage": {"uri": "s3://olivine/runs"},
}
UID = "0123456789ab-cdef"


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def job(
    status: FineTuneJobStatus | None = None, *, labels: dict[str, str] | None = None, generation: int = 1, **spec: Any
) -> JobView:
    return JobView(
        namespace=KEY[0],
        name=KEY[1],
        uid=UID,
        resource_version="7",
        generation=generation,
        labels=labels or {},
        deleting=False,
        spec=SPEC | spec,
        status=status.to_json_dict() if status is not None else {},
    )


def child(
    *held: str,
    reason: str = "",
    message: str = "",
    suspended: bool = False,
    deleting: bool = False,
    queued: bool = False,
    pods: int = 1,
) -> ChildView:
    conditions = tuple(ChildCondition(type=kind, reason=reason, message=message, since=T0) for kind in held)
    return ChildView(
        key=KEY,
        name="tone-012345",
        uid="child",
        owner_uid=UID,
        resource_version="1",
        suspended=suspended,
        deleting=deleting,
        conditions=conditions,
        config_digest=config_digest(pods),
        parallelism=pods,
        asked_pods=pods,
        resources_digest=size_annotations(Wishes())[ANNOTATION_RESOURCES],
        queued=queued,
    )


def config_digest(pods: int = 1, overrides: Overrides | None = None) -> str:
    """What the child of a job whose ConfigMap is up to date notes."""
    return digest_of(live_data(ca_certificate="CA", world=World(pods=pods), overrides=overrides))


def pod(name: str = "tone-0", phase: str = "Pending", **members: Any) -> PodView:
    blank = PodView(
        key=KEY,
        name=name,
        uid=name,
        owner_uid="child",
        resource_version="1",
        job_uid=UID,
        created=T0,
        deleting=False,
        phase=phase,
        reason="",
        node="",
        memory_limit=None,
        scheduled_at=None,
        unschedulable=None,
        disruption=None,
        running=phase == "Running",
        waiting_reason="",
        waiting_message="",
        termination=None,
    )
    return replace(blank, **members)


def ended(code: int, message: dict[str, Any] | str = "", *, at: datetime = T0, reason: str = "Error") -> Termination:
    text = message if isinstance(message, str) else json.dumps(message)
    return Termination(exit_code=code, reason=reason, message=text, at=at)


def failed(name: str, code: int, message: dict[str, Any] | str = "", *, at: datetime = T0, **members: Any) -> PodView:
    return pod(name, "Failed", termination=ended(code, message, at=at), **members)


def disrupted(reason: str = "EvictionByEvictionAPI") -> ChildCondition:
    return ChildCondition(type="DisruptionTarget", reason=reason, message="evicting", since=T0)


def snapshot(step: int = 0, stage: Stage = Stage.TRAINING, *, attempt: int = 1, at: datetime = T0, **members: Any) -> Snapshot:
    # Known once the model is loaded.
    total = None if stage in (Stage.STARTING, Stage.LOADING_MODEL) else 100
    return Snapshot(attempt=attempt, progress=Progress(stage=stage, step=step, total_steps=total, last_update_time=at), **members)


def report(step: int = 0, stage: Stage = Stage.TRAINING, *, at: datetime = T0, **members: Any) -> Report:
    return Report(snapshot=snapshot(step, stage, at=at, **members), received_at=at)


def look(
    status: FineTuneJobStatus | None = None,
    *,
    now: datetime = T0,
    kind: ChildView | None = None,
    pods: Sequence[PodView] = (),
    settings: OperatorSettings = SETTINGS,
    labels: dict[str, str] | None = None,
    spec: dict[str, Any] | None = None,
    **observed: Any,
) -> Plan:
    """One look at the job."""
    view = job(status, labels=labels, **(spec or {}))
    return plan(Observed(job=view, child=kind, pods=tuple(pods), ca_certificate="CA", **observed), now, settings)


def accepted(**look_options: Any) -> FineTuneJobStatus:
    """The status of a job whose child has just been asked for."""
    status = look(**look_options).status
    assert status is not None
    return status


def running(**look_options: Any) -> FineTuneJobStatus:
    """The status of a job whose pod runs."""
    status = look(accepted(), kind=child(), pods=[pod(phase="Running")], **look_options).status
    assert status is not None
    return status


def condition(status: FineTuneJobStatus | None, kind: str) -> Condition:
    assert status is not None
    return next(c for c in status.conditions if c.type == kind)
