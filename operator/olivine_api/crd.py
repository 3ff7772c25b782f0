"""The CustomResourceDefinitions, assembled from the models."""

from collections.abc import Iterable
from typing import Any

from olivine_api import names
from olivine_api.adapterbundle import AdapterBundleSpec, AdapterBundleStatus
from olivine_api.base import ApiModel, Rule
from olivine_api.finetunejob import MUTABLE_FIELDS, NAME_LIMIT, NAME_PATTERN, SUSPENDED_MUTABLE_PODS, FineTuneJobSpec, Pods
from olivine_api.schema import structural_schema
from olivine_api.status import FineTuneJobStatus


def _json_names(model: type[ApiModel]) -> list[str]:
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _unchanged(paths: Iterable[str]) -> str:
    """CEL: none of these members of the spec differs; absent equals absent."""
    # Not `.?member == .?member`: the API server's cost estimate knows no bounds of an optional.
    return " && ".join(
        f"(has(self.spec.{path}) ? has(oldSelf.spec.{path}) && self.spec.{path} == oldSelf.spec.{path} : !has(oldSelf.spec.{path}))"
        for path in paths
    )


_FIXED = [name for name in _json_names(FineTuneJobSpec) if name not in (*MUTABLE_FIELDS, "pods")]
_FIXED_PODS = [f"pods.{name}" for name in _json_names(Pods) if name not in SUSPENDED_MUTABLE_PODS]
_ELASTIC_PODS = [f"pods.{name}" for name in SUSPENDED_MUTABLE_PODS]
_HAS_CHILD = "has(oldSelf.status) && has(oldSelf.status.child)"
_WAY_OUT = "use a new name, or kubectl replace --force (which starts from scratch)"

_NAME_RULE = Rule(
    cel=f"self.metadata.name.size() <= {NAME_LIMIT} && self.metadata.name.matches('{NAME_PATTERN}')",
    message=f"metadata.name must be at most {NAME_LIMIT} lower-case letters, digits or '-', begin with a letter and end with a letter or digit",
)
_FIXED_RULES = (
    Rule(
        cel=f"!({_HAS_CHILD}) || ({_unchanged(_FIXED)})",
        message=f"the spec is fixed once its training child exists, but for {', '.join(MUTABLE_FIELDS)}"
        f" (and pods.{' and pods.'.join(SUSPENDED_MUTABLE_PODS)} while suspended): {_WAY_OUT}",
    ),
    Rule(
        cel=f"!({_HAS_CHILD}) || ({_unchanged(_FIXED_PODS)})",
        message="spec.pods is fixed once the training child exists, but for "
        + f"{' and '.join(SUSPENDED_MUTABLE_PODS)} while the job is suspended: {_WAY_OUT}",
    ),
    Rule(
        cel=f"!({_HAS_CHILD}) || oldSelf.spec.suspend || ({_unchanged(_ELASTIC_PODS)})",
        message="spec.pods.count and spec.pods.resources may change only while the job is suspended: set spec.suspend to true first, in a change of its own",
    ),
)


def _column(name: str, path: str, kind: str = "string", *, wide: bool = False, description: str) -> dict[str, Any]:
    return {"name": name, "jsonPath": path, "type": kind, "priority": 1 if wide else 0, "description": description}


_COLUMNS = [
    _column("Phase", ".status.phase", description="Summary of the conditions."),
    _column("Stage", ".status.progress.stage", description="What the trainer is doing."),
    _column("Progress", ".status.progress.percent", "integer", description="Percent of the optimizer steps."),
    _column("Step", ".status.progress.step", "integer", description="Optimizer steps done."),
    _column("Loss", ".status.metrics.trainLoss", "number", description="Training loss."),
    _column("ETA", ".status.progress.etaSeconds", "integer", description="Seconds until the end of training."),
    _column("Restarts", ".status.restarts", "integer", description="Incidents so far."),
    _column("Heartbeat", ".status.progress.lastUpdateTime", "date", description="Time since the trainer's last sign of life."),
    _column("Age", ".metadata.creationTimestamp", "date", description="Time since creation."),
    _column(
        "Queue", r".metadata.labels.kueue\.x-k8s\.io/queue-name", wide=True, description="The Kueue queue that the job waits in."
    ),
    _column("Eval", ".status.metrics.evalLoss", "number", wide=True, description="Validation loss."),
    _column("Model", ".spec.model.uri", wide=True, description="Base model."),
    _column("Reason", ".status.lastFailure.reason", wide=True, description="Reason of the last failure."),
]


_BUNDLE_COLUMNS = [
    _column("Phase", ".status.phase", description="Summary of the conditions."),
    _column("Adapters", ".status.summary.adapters", description="Ready and all."),
    _column("Version", ".status.bundle.version", "integer", description="The newest version."),
    _column("Size", ".status.summary.size", description="Of the newest version."),
    _column(
        "Parity", ".status.summary.worstParity", "number", description="The largest difference of a logit from PyTorch's, in fp32."
    ),
    _column("Age", ".metadata.creationTimestamp", "date", description="Time since creation."),
    _column("URI", ".status.bundle.uri", wide=True, description="Where the newest version is."),
    _column("Reason", ".status.lastFailure.reason", wide=True, description="Reason of the last failure."),
]


def finetunejob_crd() -> dict[str, Any]:
    """The FineTuneJob CustomResourceDefinition."""
    return _crd(
        names.FINETUNEJOB_KIND,
        "ftj",
        "FineTuneJob fine-tunes a small language model.",
        spec=structural_schema(FineTuneJobSpec),
        status=structural_schema(FineTuneJobStatus),
        columns=_COLUMNS,
        rules=(_NAME_RULE, *_FIXED_RULES),
    )


def adapterbundle_crd() -> dict[str, Any]:
    """The AdapterBundle CustomResourceDefinition."""
    return _crd(
        names.ADAPTERBUNDLE_KIND,
        "ab",
        "AdapterBundle makes one multi-adapter ONNX model of several adapters.",
        spec=structural_schema(AdapterBundleSpec),
        status=structural_schema(AdapterBundleStatus),
        columns=_BUNDLE_COLUMNS,
        rules=(_NAME_RULE,),
    )


def _crd(
    kind: str,
    short: str,
    description: str,
    *,
    spec: dict[str, Any],
    status: dict[str, Any],
    columns: list[dict[str, Any]],
    rules: tuple[Rule, ...],
) -> dict[str, Any]:
    status["properties"]["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    singular = kind.lower()
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{singular}s.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": f"{singular}s",
                "singular": singular,
                "shortNames": [short],
                "categories": ["all", "olivine"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {
                        "openAPIV3Schema": {
                            "description": description,
                            "type": "object",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": spec,
                                "status": status,
                            },
                            "x-kubernetes-validations": [rule.to_schema() for rule in rules],
                        }
                    },
                }
            ],
        },
    }
