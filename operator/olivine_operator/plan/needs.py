"""What a pod is to have beside the administrator's settings: of a training, or of a bundle's build."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from olivine_api import names
from olivine_api.finetunejob import FineTuneJobSpec, Pods, own_classes
from olivine_api.sources import LocalObjectReference

_CLAIM_SCHEME = "pvc://"


@dataclass(frozen=True, kw_only=True)
class PodNeeds:
    """The user's wishes, and what the addresses of a spec need to be reached."""

    pods: Pods
    args: tuple[str, ...] = ()
    """Of the trainer; none trains."""
    secrets: tuple[dict[str, Any], ...] = ()
    """Entries of envFrom: the Secrets' keys as environment variables, a prefix for each source."""
    claims: Mapping[str, bool] = field(default_factory=dict[str, bool])
    """The claims that URIs name, each once, and whether something is written there."""
    cache_claim: str | None = None
    """The volume in which pods share base models."""
    plugins: Mapping[str, list[str]] = field(default_factory=dict[str, list[str]])
    """The ConfigMaps with code of the user's, and the keys that are wanted of each."""


def needs_of_training(spec: FineTuneJobSpec) -> PodNeeds:
    """What a FineTuneJob's pods are to have."""
    sources = {"train": spec.data.train, "validation": spec.data.validation, "test": spec.data.test}
    publish = spec.outputs.publish if spec.outputs is not None else None
    roles = {"storage": spec.storage, "model": spec.model, **sources, "publish": publish}
    read = [spec.model.uri, *(source.uri for source in sources.values() if source is not None)]
    read += [benchmark.uri for benchmark in spec.evaluation.benchmarks or ()]
    written = [spec.storage.uri, *((publish.uri,) if publish is not None else ())]
    return PodNeeds(
        pods=spec.pods,
        secrets=tuple(
            secret_source(names.ENV_SECRET_PREFIXES[role], source.secret_ref)
            for role, source in roles.items()
            if source is not None and source.secret_ref is not None
        ),
        claims=claims_of(read, written),
        cache_claim=spec.model.cache.claim_name if spec.model.cache is not None else None,
        plugins=_plugins(spec),
    )


def secret_source(prefix: str, secret: LocalObjectReference, *, optional: bool = False) -> dict[str, Any]:
    """An entry of envFrom; a missing Secret shows in the pod's status, unless it is optional."""
    reference: dict[str, Any] = {"name": secret.name} | ({"optional": True} if optional else {})
    return {"prefix": prefix, "secretRef": reference}


def claims_of(read: Iterable[str], written: Iterable[str]) -> dict[str, bool]:
    """The claims that pvc:// URIs name, and whether something is written there."""
    found = {_claim(uri): False for uri in read if uri.startswith(_CLAIM_SCHEME)}
    return found | {_claim(uri): True for uri in written if uri.startswith(_CLAIM_SCHEME)}


def _claim(uri: str) -> str:
    return uri.removeprefix(_CLAIM_SCHEME).split("/", 1)[0]


def _plugins(spec: FineTuneJobSpec) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for _, plugin in own_classes(spec):
        found.setdefault(str(plugin.config_map), set()).add(str(plugin.key))
    return {name: sorted(keys) for name, keys in sorted(found.items())}
