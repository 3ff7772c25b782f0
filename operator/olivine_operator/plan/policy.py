"""What the administrator allows in a namespace, and what of a spec goes beyond it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from olivine_api.adapterbundle import AdapterBundleSpec
from olivine_api.base import ApiModel
from olivine_api.finetunejob import FineTuneJobSpec
from olivine_api.parameters import Plugin
from olivine_operator.plan.settings import LabelRequirement, NamespaceSelector, OperatorSettings, Policy

# The ServiceAccount of a pod that names none.
_DEFAULT_SERVICE_ACCOUNT = "default"
_REFERENCES = frozenset({"secret_ref", "secret_key_ref"})


def policy_for(settings: OperatorSettings, labels: Mapping[str, str]) -> Policy:
    """The policy of a namespace with these labels: the first whose selector matches, else the default."""
    found = next((item for item in settings.policies if _selects(item.namespace_selector, labels)), settings.policy)
    if found.images is None:
        return found
    # The administrator's own choice needs no leave.
    return found.model_copy(update={"images": [*found.images, settings.trainer.image]})


def _selects(selector: NamespaceSelector, labels: Mapping[str, str]) -> bool:
    return selects(selector.match_labels, selector.match_expressions, labels)


def _meets(requirement: LabelRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values


def violations(spec: FineTuneJobSpec | AdapterBundleSpec, policy: Policy) -> Iterator[str]:
    """A sentence for each field that goes beyond the policy: the field, its value, what to write instead, whom to ask."""
    fields = tuple(_fields(spec, "spec"))
    for path, name, owner, value in fields:
        if name == "uri" and str(value).startswith("file://") and not policy.allow_file_uris:
            yield _no(path, value, "put the files into object storage (s3://)", "policy.allowFileUris")
        if name == "host_path" and not policy.allow_host_path:
            yield _no(path, value.path, "use a persistentVolumeClaim", "policy.allowHostPath")
        if name == "config_map" and isinstance(owner, Plugin) and not policy.allow_plugins:
            yield _no(path, value, "use a built-in", "policy.allowPlugins")
    if isinstance(spec, FineTuneJobSpec) and spec.model.trust_remote_code and not policy.allow_trust_remote_code:
        yield _no("spec.model.trustRemoteCode", "true", "use a model that transformers knows", "policy.allowTrustRemoteCode")
    for path, secret in _secrets(fields):
        yield from _unlisted(path, secret, policy.secret_names, "the Secrets", "policy.secretNames")
    account = spec.pods.service_account_name
    yield from _unlisted(
        "spec.pods.serviceAccountName",
        account or _DEFAULT_SERVICE_ACCOUNT,
        policy.service_account_names,
        "the ServiceAccounts" if account else "the ServiceAccounts (a job that names none runs as this one)",
        "policy.serviceAccountNames",
    )
    if spec.pods.image is not None:
        yield from _unlisted("spec.pods.image", spec.pods.image, policy.images, "the images", "policy.images")
    prefixes = policy.storage_prefixes
    for path, uri in _written(spec):
        if prefixes is not None and not any(_is_below(uri, prefix) for prefix in prefixes):
            yield _no(path, uri, f"begin with {_either(prefixes)}", "policy.storagePrefixes")


def _written(spec: FineTuneJobSpec | AdapterBundleSpec) -> Iterator[tuple[str, str]]:
    """Where something is written to."""
    yield "spec.storage.uri", spec.storage.uri
    if isinstance(spec, AdapterBundleSpec):
        if spec.publish is not None:
            yield "spec.publish.uri", spec.publish.uri
    elif spec.outputs is not None and spec.outputs.publish is not None:
        yield "spec.outputs.publish.uri", spec.outputs.publish.uri


def allows_secret(name: str, policy: Policy) -> bool:
    """Whether a Secret may be used."""
    return policy.secret_names is None or any(fnmatchcase(name, pattern) for pattern in policy.secret_names)


def selects(match_labels: Mapping[str, str], requirements: Iterable[LabelRequirement], labels: Mapping[str, str]) -> bool:
    """Whether a Kubernetes label selector matches."""
    return all(labels.get(key) == value for key, value in match_labels.items()) and all(
        _meets(requirement, labels) for requirement in requirements
    )


def _fields(model: ApiModel, path: str) -> Iterator[tuple[str, str, ApiModel, Any]]:
    """Every field that is set, at any depth: its path, its name, the model it is of, its value. Maps of the user's own are not entered."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value is None:
            continue
        where = f"{path}.{field.alias or name}"
        yield where, name, model, value
        items = {f"{where}[{index}]": item for index, item in enumerate(value)} if isinstance(value, list) else {where: value}
        for inner, item in items.items():
            if isinstance(item, ApiModel):
                yield from _fields(item, inner)


def _secrets(fields: Sequence[tuple[str, str, ApiModel, Any]]) -> Iterator[tuple[str, str]]:
    """Every Secret that a spec names, wherever it does."""
    for path, name, _, value in fields:
        if name in _REFERENCES:
            yield f"{path}.name", value.name
        elif name == "secret_name":
            yield path, value
        elif name == "image_pull_secrets":
            for index, item in enumerate(value):
                yield f"{path}[{index}].name", item.name


def _unlisted(path: str, value: str, patterns: Sequence[str] | None, what: str, setting: str) -> Iterator[str]:
    if patterns is not None and not any(fnmatchcase(value, pattern) for pattern in patterns):
        yield _no(path, value, f"{what} allowed are {_either(patterns)}", setting)


def _is_below(uri: str, prefix: str) -> bool:
    return uri.rstrip("/") == prefix.rstrip("/") or uri.startswith(prefix.rstrip("/") + "/")


def _either(allowed: Sequence[str]) -> str:
    return " or ".join(allowed) if allowed else "none"


def _no(path: str, value: str, instead: str, setting: str) -> str:
    return f"{path}: {value} is not allowed in this namespace: {instead}, or ask the administrator for {setting}"
