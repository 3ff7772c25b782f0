"""The trainer pod: the image, the user's wishes, and what the `restricted` Pod Security level asks for."""

from collections.abc import Iterable, Mapping
from typing import Any

from olivine_api import names
from olivine_api.finetunejob import FineTuneJobSpec, Pods
from olivine_operator.plan.naming import child_name, own_labels
from olivine_operator.plan.observed import JobView
from olivine_operator.plan.settings import OperatorSettings, PodDefaults

CONTAINER = "trainer"
USER_ID = 65532
# kubelet renews a projected token at 80 % of its life; an hour bounds what a stolen one is worth.
TOKEN_SECONDS = 3600

# Prefixed, so that they meet no name of the administrator's volumes.
_CONFIG, _TOKEN, _SCRATCH, _TMP, _SHM = (f"olivine-{name}" for name in ("config", "token", "scratch", "tmp", "shm"))

_RESTRICTED_POD: Mapping[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_RESTRICTED_CONTAINER: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod_template(job: JobView, spec: FineTuneJobSpec, settings: OperatorSettings) -> dict[str, Any]:
    """The Job's pod template."""
    defaults, pods = settings.trainer.pod_defaults, spec.pods
    labels = {key: value for key, value in job.labels.items() if key.startswith(f"{names.GROUP}/")} | own_labels(job)
    body = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": dict(_RESTRICTED_POD),
        "terminationGracePeriodSeconds": pods.termination_grace_period_seconds,
        "containers": [_container(spec, settings)],
        "volumes": [*_volumes(job, settings), *defaults.volumes],
        "serviceAccountName": pods.service_account_name,
        "priorityClassName": pods.priority_class_name,
        "nodeSelector": {**defaults.node_selector, **(pods.node_selector or {})},
        "tolerations": [*defaults.tolerations, *_dumped(pods.tolerations or ())],
        "imagePullSecrets": _dumped(
            pods.image_pull_secrets if pods.image_pull_secrets is not None else defaults.image_pull_secrets
        ),
    }
    return {"metadata": {"labels": labels}, "spec": {key: value for key, value in body.items() if value not in (None, [], {})}}


def _dumped(models: Iterable[Any]) -> list[dict[str, Any]]:
    return [model.to_json_dict() for model in models]


def _container(spec: FineTuneJobSpec, settings: OperatorSettings) -> dict[str, Any]:
    trainer, pods = settings.trainer, spec.pods
    return {
        "name": CONTAINER,
        "image": pods.image or trainer.image,
        "imagePullPolicy": pods.image_pull_policy or trainer.image_pull_policy,
        "resources": _resources(pods, trainer.pod_defaults),
        "env": _environment(pods, settings),
        "envFrom": secret_sources(spec),
        "volumeMounts": [
            {"name": _CONFIG, "mountPath": names.CONFIG_DIR, "readOnly": True},
            {"name": _TOKEN, "mountPath": names.TOKEN_DIR, "readOnly": True},
            {"name": _SCRATCH, "mountPath": names.SCRATCH_DIR},
            {"name": _TMP, "mountPath": "/tmp"},
            {"name": _SHM, "mountPath": "/dev/shm"},
            *trainer.pod_defaults.volume_mounts,
        ],
        "securityContext": dict(_RESTRICTED_CONTAINER),
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }


def _resources(pods: Pods, defaults: PodDefaults) -> dict[str, Any]:
    return pods.resources.to_json_dict() if pods.resources is not None else dict(defaults.resources)


def _environment(pods: Pods, settings: OperatorSettings) -> list[dict[str, Any]]:
    """The administrator's variables, then the user's, then ours: of equal names the last wins."""
    ours: list[dict[str, Any]] = [
        {"name": names.ENV_STATUS_URL, "value": settings.status_url},
        {"name": names.ENV_POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {
            "name": names.ENV_CPU_LIMIT,
            "valueFrom": {"resourceFieldRef": {"containerName": CONTAINER, "resource": "limits.cpu", "divisor": "1"}},
        },
    ]
    merged = {item["name"]: item for item in [*settings.trainer.pod_defaults.env, *_dumped(pods.env or ()), *ours]}
    return list(merged.values())


def secret_sources(spec: FineTuneJobSpec) -> list[dict[str, Any]]:
    """The Secrets' keys as environment variables, a prefix for each source; a missing Secret then shows in the pod's status."""
    roles = {
        "storage": spec.storage.secret_ref,
        "model": spec.model.secret_ref,
        "train": spec.data.train.secret_ref,
        "validation": spec.data.validation.secret_ref if spec.data.validation is not None else None,
    }
    return [
        {"prefix": names.ENV_SECRET_PREFIXES[role], "secretRef": {"name": ref.name}}
        for role, ref in roles.items()
        if ref is not None
    ]


def _volumes(job: JobView, settings: OperatorSettings) -> list[dict[str, Any]]:
    token = {"path": names.TOKEN_FILE, "audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS}
    return [
        {"name": _CONFIG, "configMap": {"name": child_name(job)}},
        {"name": _TOKEN, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": _SCRATCH, "emptyDir": {}},
        {"name": _TMP, "emptyDir": {}},
        {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": settings.trainer.shared_memory}},
    ]
