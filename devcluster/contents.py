"""What every cluster holds before anybody uses it: namespaces, the store's Secret, and the environment as a volume."""

from devcluster.api import ApiClient, Json
from devcluster.console import DevclusterError
from devcluster.paths import ENVIRONMENT
from devcluster.processes import wait_until
from devcluster.s3 import Access
from devcluster.slots import Slot

TEAMS = ("team-a", "team-b")
OPERATOR_NAMESPACE = "olivine-system"
SECRET = "olivine-storage"
ENVIRONMENT_CLAIM = "olivine-environment"
# A claim needs a size; nobody measures it.
_SIZE = "10Gi"


def grant(api: ApiClient, slot: Slot, access: Access, namespace: str) -> None:
    """Makes a namespace in which trainer pods can run; returns when pods are let in."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": namespace},
        "stringData": access.env(),
    }
    api.apply(_namespace(namespace), secret)
    api.apply(*_environment(api, slot, namespace))
    _wait(api, namespace)


def prepare_operator(api: ApiClient, slot: Slot) -> None:
    """Makes the operator's namespace, with the environment and without the store's Secret."""
    api.apply(_namespace(OPERATOR_NAMESPACE))
    api.apply(*_environment(api, slot, OPERATOR_NAMESPACE))
    _wait(api, OPERATOR_NAMESPACE)


def _wait(api: ApiClient, namespace: str) -> None:
    def usable() -> bool:
        account = api.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
        claim = api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{ENVIRONMENT_CLAIM}")
        return account is not None and claim is not None and claim["status"].get("phase") == "Bound"

    wait_until(f"namespace {namespace} has its ServiceAccount and its environment volume", usable, seconds=60)


def _namespace(name: str) -> Json:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _environment(api: ApiClient, slot: Slot, namespace: str) -> list[Json]:
    """A volume over the checkout's Python environment: `restricted` forbids hostPath, but not a claim."""
    owner = api.get(f"/api/v1/namespaces/{namespace}")
    if owner is None:
        raise DevclusterError(f"namespace {namespace} was deleted while it was prepared")
    uid: str = owner["metadata"]["uid"]
    # A volume keeps the claim that it was bound to: a namespace that is made again needs another, and the old one goes with its own.
    name = f"{ENVIRONMENT_CLAIM}-{namespace}-{uid[:8]}"
    goes_with = {"apiVersion": "v1", "kind": "Namespace", "name": namespace, "uid": uid}
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [slot.name]}
    volume = {
        **common,
        "capacity": {"storage": _SIZE},
        "local": {"path": str(ENVIRONMENT)},
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"name": ENVIRONMENT_CLAIM, "namespace": namespace},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
    }
    claim = {**common, "volumeName": name, "resources": {"requests": {"storage": _SIZE}}}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "ownerReferences": [goes_with]},
            "spec": volume,
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": ENVIRONMENT_CLAIM, "namespace": namespace},
            "spec": claim,
        },
    ]
