"""The trainer pod's volumes: the job's ConfigMap, the token, scratch space, and the claims that the spec names."""

from typing import Any

from olivine_api import names
from olivine_api.finetunejob import FineTuneJobSpec, own_classes
from olivine_operator.plan.naming import child_name
from olivine_operator.plan.observed import JobView
from olivine_operator.plan.settings import OperatorSettings

# kubelet renews a projected token at 80 % of its life; an hour bounds what a stolen one is worth.
TOKEN_SECONDS = 3600
_CLAIM_SCHEME = "pvc://"
# Prefixed, so that they meet no name of the administrator's or the user's volumes.
_CONFIG, _TOKEN, _SCRATCH, _TMP, _SHM, _CACHE = (
    f"olivine-{name}" for name in ("config", "token", "scratch", "tmp", "shm", "model-cache")
)


def volumes(job: JobView, spec: FineTuneJobSpec, settings: OperatorSettings) -> list[dict[str, Any]]:
    """The operator's, the administrator's, the user's."""
    token = {"path": names.TOKEN_FILE, "audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS}
    size = spec.pods.shared_memory if spec.pods.shared_memory is not None else settings.trainer.shared_memory
    found: list[dict[str, Any]] = [
        {"name": _CONFIG, "configMap": {"name": child_name(job)}},
        {"name": _TOKEN, "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": _SCRATCH, "emptyDir": {}},
        {"name": _TMP, "emptyDir": {}},
        {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": size}},
    ]
    for number, claim in enumerate(claims(spec)):
        found.append({"name": f"olivine-claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    if spec.model.cache is not None:
        found.append({"name": _CACHE, "persistentVolumeClaim": {"claimName": spec.model.cache.claim_name}})
    found += [_plugin_volume(number, name, keys) for number, (name, keys) in enumerate(plugins(spec).items())]
    return [*found, *settings.trainer.pod_defaults.volumes, *(item.to_json_dict() for item in spec.pods.volumes or ())]


def mounts(spec: FineTuneJobSpec, settings: OperatorSettings) -> list[dict[str, Any]]:
    """Where they stand in the container."""
    found: list[dict[str, Any]] = [
        {"name": _CONFIG, "mountPath": names.CONFIG_DIR, "readOnly": True},
        {"name": _TOKEN, "mountPath": names.TOKEN_DIR, "readOnly": True},
        {"name": _SCRATCH, "mountPath": names.SCRATCH_DIR},
        {"name": _TMP, "mountPath": "/tmp"},
        {"name": _SHM, "mountPath": "/dev/shm"},
    ]
    for number, (claim, written) in enumerate(claims(spec).items()):
        mount: dict[str, Any] = {"name": f"olivine-claim-{number}", "mountPath": f"{names.CLAIMS_DIR}/{claim}"}
        found.append(mount if written else mount | {"readOnly": True})
    if spec.model.cache is not None:
        found.append({"name": _CACHE, "mountPath": names.MODEL_CACHE_DIR})
    for number, name in enumerate(plugins(spec)):
        found.append({"name": f"olivine-plugin-{number}", "mountPath": f"{names.PLUGINS_DIR}/{name}", "readOnly": True})
    user = [item.to_json_dict() for item in spec.pods.volume_mounts or ()]
    return [*found, *settings.trainer.pod_defaults.volume_mounts, *user]


def plugins(spec: FineTuneJobSpec) -> dict[str, list[str]]:
    """The ConfigMaps with code of the user's, each once, and the keys that are wanted of it."""
    found: dict[str, set[str]] = {}
    for _, plugin in own_classes(spec):
        found.setdefault(str(plugin.config_map), set()).add(str(plugin.key))
    return {name: sorted(keys) for name, keys in sorted(found.items())}


def _plugin_volume(number: int, name: str, keys: list[str]) -> dict[str, Any]:
    # Optional: without it a pod would wait for ever; the trainer says in a sentence what is missing, and ends.
    items = [{"key": key, "path": key} for key in keys]
    return {"name": f"olivine-plugin-{number}", "configMap": {"name": name, "items": items, "optional": True}}


def claims(spec: FineTuneJobSpec) -> dict[str, bool]:
    """The claims that URIs name, each once, and whether something is written there."""
    uris = [spec.model.uri, spec.data.train.uri]
    uris += [source.uri for source in (spec.data.validation, spec.data.test) if source is not None]
    uris += [benchmark.uri for benchmark in spec.evaluation.benchmarks or ()]
    found = {_claim(uri): False for uri in uris if uri.startswith(_CLAIM_SCHEME)}
    publish = spec.outputs.publish if spec.outputs is not None else None
    for uri in (spec.storage.uri, publish.uri if publish is not None else ""):
        if uri.startswith(_CLAIM_SCHEME):
            found[_claim(uri)] = True
    return found


def _claim(uri: str) -> str:
    return uri.removeprefix(_CLAIM_SCHEME).split("/", 1)[0]
