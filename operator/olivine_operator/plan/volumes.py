"""The trainer pod's volumes: the job's ConfigMap, the token, scratch space, and the claims that the spec names."""

from typing import Any

from olivine_api import names
from olivine_operator.plan.needs import PodNeeds
from olivine_operator.plan.settings import OperatorSettings

# kubelet renews a projected token at 80 % of its life; an hour bounds what a stolen one is worth.
TOKEN_SECONDS = 3600
# Prefixed, so that they meet no name of the administrator's or the user's volumes.
_CONFIG, _TOKEN, _SCRATCH, _TMP, _SHM, _CACHE = (
    f"olivine-{name}" for name in ("config", "token", "scratch", "tmp", "shm", "model-cache")
)


def volumes(config_map: str, needs: PodNeeds, settings: OperatorSettings) -> list[dict[str, Any]]:
    """The operator's, the administrator's, the user's; `config_map` says what is to be done."""
    token = {"path": names.TOKEN_FILE, "audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS}
    size = needs.pods.shared_memory if needs.pods.shared_memory is not None else settings.trainer.shared_memory
    found: list[dict[str, Any]] = [
        {"name": _CONFIG, "configMap": {"name": config_map}},
        {"name": _TOKEN, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": _SCRATCH, "emptyDir": {}},
        {"name": _TMP, "emptyDir": {}},
        {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": size}},
    ]
    for number, claim in enumerate(needs.claims):
        found.append({"name": f"olivine-claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    if needs.cache_claim is not None:
        found.append({"name": _CACHE, "persistentVolumeClaim": {"claimName": needs.cache_claim}})
    found += [_plugin_volume(number, name, keys) for number, (name, keys) in enumerate(needs.plugins.items())]
    return [*found, *settings.trainer.pod_defaults.volumes, *(item.to_json_dict() for item in needs.pods.volumes or ())]


def mounts(needs: PodNeeds, settings: OperatorSettings) -> list[dict[str, Any]]:
    """Where they stand in the container."""
    found: list[dict[str, Any]] = [
        {"name": _CONFIG, "mountPath": names.CONFIG_DIR, "readOnly": True},
        {"name": _TOKEN, "mountPath": names.TOKEN_DIR, "readOnly": True},
        {"name": _SCRATCH, "mountPath": names.SCRATCH_DIR},
        {"name": _TMP, "mountPath": "/tmp"},
        {"name": _SHM, "mountPath": "/dev/shm"},
    ]
    for number, (claim, written) in enumerate(needs.claims.items()):
        mount: dict[str, Any] = {"name": f"olivine-claim-{number}", "mountPath": f"{names.CLAIMS_DIR}/{claim}"}
        found.append(mount if written else mount | {"readOnly": True})
    if needs.cache_claim is not None:
        found.append({"name": _CACHE, "mountPath": names.MODEL_CACHE_DIR})
    for number, name in enumerate(needs.plugins):
        found.append({"name": f"olivine-plugin-{number}", "mountPath": f"{names.PLUGINS_DIR}/{name}", "readOnly": True})
    user = [item.to_json_dict() for item in needs.pods.volume_mounts or ()]
    return [*found, *settings.trainer.pod_defaults.volume_mounts, *user]


def _plugin_volume(number: int, name: str, keys: list[str]) -> dict[str, Any]:
    # Optional: without it a pod would wait for ever; the trainer says in a sentence what is missing, and ends.
    items = [{"key": key, "path": key} for key in keys]
    return {"name": f"olivine-plugin-{number}", "configMap": {"name": name, "items": items, "optional": True}}
