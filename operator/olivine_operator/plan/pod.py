"""The trainer pod: the image, the user's wishes, and what the `restricted` Pod Security level asks for."""

from collections.abc import Iterable, Mapping
from typing import Any

from olivine_api import names
from olivine_api.finetunejob import Pods
from olivine_operator.plan.naming import own_labels
from olivine_operator.plan.needs import PodNeeds
from olivine_operator.plan.observed import JobView
from olivine_operator.plan.settings import OperatorSettings, PodDefaults
from olivine_operator.plan.volumes import mounts, volumes

CONTAINER = "trainer"
USER_ID = 65532

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


def pod_template(job: JobView, needs: PodNeeds, settings: OperatorSettings, *, config_map: str, leader: str = "") -> dict[str, Any]:
    """The Job's pod template; `config_map` says what is to be done, `leader` is the DNS name of the pod with index 0 where there are several."""
    defaults, pods = settings.trainer.pod_defaults, needs.pods
    copied = {key: value for key, value in job.labels.items() if key.startswith(f"{names.GROUP}/")}
    metadata = {
        "labels": {**defaults.labels, **(pods.labels or {}), **copied, **own_labels(job)},
        "annotations": {**defaults.annotations, **job.annotations, **(pods.annotations or {})},
    }
    body = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "subdomain": leader.partition(".")[2] if pods.count > 1 else None,
        "securityContext": dict(_RESTRICTED_POD),
        "terminationGracePeriodSeconds": pods.termination_grace_period_seconds,
        "containers": [_container(needs, settings, leader)],
        "volumes": volumes(config_map, needs, settings),
        "serviceAccountName": pods.service_account_name,
        "priorityClassName": pods.priority_class_name or defaults.priority_class_name,
        "runtimeClassName": pods.runtime_class_name or defaults.runtime_class_name,
        "schedulerName": pods.scheduler_name or defaults.scheduler_name,
        "nodeSelector": {**defaults.node_selector, **(pods.node_selector or {})},
        "tolerations": [*defaults.tolerations, *_dumped(pods.tolerations or ())],
        "affinity": pods.affinity.to_json_dict() if pods.affinity is not None else defaults.affinity,
        "topologySpreadConstraints": _spread(job, pods, defaults),
        "imagePullSecrets": _dumped(
            pods.image_pull_secrets if pods.image_pull_secrets is not None else defaults.image_pull_secrets
        ),
    }
    return {"metadata": _present(metadata), "spec": _present(body)}


def _present(members: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in members.items() if value not in (None, "", [], {})}


def _spread(job: JobView, pods: Pods, defaults: PodDefaults) -> list[dict[str, Any]]:
    """Without a selector, a constraint means the job's own pods."""
    own = {"labelSelector": {"matchLabels": {names.LABEL_JOB_UID: job.uid}}}
    wished = pods.topology_spread_constraints
    return [own | constraint for constraint in (_dumped(wished) if wished is not None else defaults.topology_spread_constraints)]


def _dumped(models: Iterable[Any]) -> list[dict[str, Any]]:
    return [model.to_json_dict() for model in models]


def _container(needs: PodNeeds, settings: OperatorSettings, leader: str) -> dict[str, Any]:
    trainer, pods = settings.trainer, needs.pods
    args = {"args": list(needs.args)} if needs.args else {}
    return args | {
        "name": CONTAINER,
        "image": image_of(pods, settings),
        "imagePullPolicy": pods.image_pull_policy or trainer.image_pull_policy,
        "resources": container_resources(pods, trainer.pod_defaults),
        "env": _environment(pods, settings, leader),
        # Of equal names the last wins: ours.
        "envFrom": [*_dumped(pods.env_from or ()), *needs.secrets],
        "volumeMounts": mounts(needs, settings),
        "securityContext": dict(_RESTRICTED_CONTAINER),
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }


def image_of(pods: Pods, settings: OperatorSettings) -> str:
    """What the trainer pods are made from."""
    return pods.image or settings.trainer.image


def container_resources(pods: Pods, defaults: PodDefaults) -> dict[str, Any]:
    """The user's, else the administrator's."""
    return pods.resources.to_json_dict() if pods.resources is not None else dict(defaults.resources)


def _environment(pods: Pods, settings: OperatorSettings, leader: str) -> list[dict[str, Any]]:
    """The administrator's variables, then the user's, then ours: of equal names the last wins."""
    ours: list[dict[str, Any]] = [
        {"name": names.ENV_STATUS_URL, "value": settings.status_url},
        {"name": names.ENV_POD_NAME, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {
            "name": names.ENV_CPU_LIMIT,
            "valueFrom": {"resourceFieldRef": {"containerName": CONTAINER, "resource": "limits.cpu", "divisor": "1"}},
        },
    ]
    if pods.count > 1:
        ours.append({"name": names.ENV_LEADER_HOST, "value": leader})
    merged = {item["name"]: item for item in [*settings.trainer.pod_defaults.env, *_dumped(pods.env or ()), *ours]}
    return list(merged.values())
