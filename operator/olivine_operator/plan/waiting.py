"""Why a pod does not run yet, as a reason and a sentence."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from olivine_api.reasons import Reason
from olivine_operator.plan.observed import PodView

# What every pod passes through.
_ORDINARY = ("", "ContainerCreating", "PodInitializing")
# Both names of one trouble alternate in a pod's status: one of them, or each change would be written.
_SAME = {"ErrImagePull": "ImagePullBackOff"}
_IMAGE_TROUBLES = ("ImagePullBackOff", "InvalidImageName")
_IMAGE_ADVICE = (
    "; correct spec.pods.image in a new job, or let the image be pulled (spec.pods.imagePullSecrets, the registry):"
    " the pod starts by itself then"
)
# Volumes that cannot be mounted show in no condition, only by the pod staying as it is.
SLOW_START = timedelta(seconds=90)
# Before that, kubelet's Events about it are read.
EXPLAIN_AFTER = timedelta(seconds=20)
# Reasons of those Events: a Secret, a ConfigMap or a claim of spec.pods.volumes, mostly.
SETUP_TROUBLES = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedCreatePodSandBox"})
_MISSING = re.compile(r'secrets? "(?P<name>[^"]+)" not found')
_NO_CLAIM = re.compile(r'persistentvolumeclaim "(?P<name>[^"]+)" not found')
_UNBOUND = "unbound immediate PersistentVolumeClaims"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Why a pod waits."""

    reason: str
    message: str


def waiting_of(pod: PodView, now: datetime) -> Waiting | None:
    """The trouble of a pod that has not started; None where it only takes its time."""
    if pod.waiting_reason not in _ORDINARY:
        missing = _MISSING.search(pod.waiting_message)
        if missing:
            name = missing["name"]
            return Waiting(
                reason=Reason.SECRET_NOT_FOUND,
                message=f'secret "{name}" not found in namespace {pod.key[0]}: create it; the pod starts by itself then',
            )
        message = pod.waiting_message or f"pod {pod.name} waits: {pod.waiting_reason}"
        reason = _SAME.get(pod.waiting_reason, pod.waiting_reason)
        return Waiting(reason=reason, message=message + (_IMAGE_ADVICE if reason in _IMAGE_TROUBLES else ""))
    if pod.unschedulable is not None:
        return _unschedulable(pod, pod.unschedulable.message)
    if is_slow(pod, now):
        seconds = int(SLOW_START.total_seconds())
        return Waiting(
            reason="ContainerCreating",
            message=f"pod {pod.name} has been waiting for its image and volumes for more than {seconds} s: kubectl describe pod tells more",
        )
    return None


def _unschedulable(pod: PodView, told: str) -> Waiting:
    missing = _NO_CLAIM.search(told)
    if missing:
        message = f'PersistentVolumeClaim "{missing["name"]}" not found in namespace {pod.key[0]}: create it; the pod starts by itself then'
        return Waiting(reason=Reason.CLAIM_NOT_FOUND, message=message)
    if _UNBOUND in told:
        message = f"pod {pod.name} waits for a PersistentVolumeClaim that is not bound: kubectl get pvc -n {pod.key[0]} tells which"
        return Waiting(reason=Reason.CLAIM_NOT_BOUND, message=message)
    message = (
        f"no node takes pod {pod.name}: {told}; it waits for room: spec.pods.resources may be lowered while the job is suspended"
    )
    return Waiting(reason=Reason.UNSCHEDULABLE, message=message)


def is_slow(pod: PodView, now: datetime) -> bool:
    """Whether a pod waits for its image and volumes, and has for long."""
    return pod.waiting_reason in _ORDINARY and slow_at(pod, now) == 0


def is_worth_asking(pod: PodView, now: datetime) -> bool:
    """Whether kubelet may have told what keeps it from setting a pod up."""
    return pod.waiting_reason in _ORDINARY and slow_at(pod, now, EXPLAIN_AFTER) == 0


def slow_at(pod: PodView, now: datetime, limit: timedelta = SLOW_START) -> float | None:
    """Seconds until a pod that is being set up counts as slow; None where that does not apply."""
    if pod.scheduled_at is None or pod.running or pod.termination is not None:
        return None
    return max(0.0, (pod.scheduled_at + limit - now).total_seconds())
