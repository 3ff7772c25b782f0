"""The CustomResourceDefinitions, assembled from the models."""

from typing import Any

from olivine_api import names
from olivine_api.base import Rule
from olivine_api.finetunejob import MUTABLE_FIELDS, NAME_LIMIT, NAME_PATTERN, FineTuneJobSpec
from olivine_api.schema import structural_schema
from olivine_api.status import FineTuneJobStatus

_IMMUTABLE = sorted(
    field.alias or name for name, field in FineTuneJobSpec.model_fields.items() if (field.alias or name) not in MUTABLE_FIELDS
)

_ROOT_RULES = (
    Rule(
        cel=f"self.metadata.name.size() <= {NAME_LIMIT} && self.metadata.name.matches('{NAME_PATTERN}')",
        message=f"metadata.name must be at most {NAME_LIMIT} lower-case letters, digits or '-', begin with a letter and end with a letter or digit",
    ),
    Rule(
        cel="!has(oldSelf.status) || !has(oldSelf.status.child) || ("
        + " && ".join(f"self.spec.{field} == oldSelf.spec.{field}" for field in _IMMUTABLE)
        + ")",
        message="the spec is fixed once its training child exists, but for "
        + ", ".join(MUTABLE_FIELDS)
        + ": use a new name, or kubectl replace --force (which starts from scratch)",
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
    _column("Eval", ".status.metrics.evalLoss", "number", wide=True, description="Validation loss."),
    _column("Model", ".spec.model.uri", wide=True, description="Base model."),
    _column("Reason", ".status.lastFailure.reason", wide=True, description="Reason of the last failure."),
]


def finetunejob_crd() -> dict[str, Any]:
    """The FineTuneJob CustomResourceDefinition."""
    spec = structural_schema(FineTuneJobSpec)
    status = structural_schema(FineTuneJobStatus)
    status["properties"]["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.FINETUNEJOB_PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.FINETUNEJOB_KIND,
                "listKind": f"{names.FINETUNEJOB_KIND}List",
                "plural": names.FINETUNEJOB_PLURAL,
                "singular": names.FINETUNEJOB_KIND.lower(),
                "shortNames": ["ftj"],
                "categories": ["all", "olivine"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _COLUMNS,
                    "schema": {
                        "openAPIV3Schema": {
                            "description": "FineTuneJob fine-tunes a small language model.",
                            "type": "object",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": spec,
                                "status": status,
                            },
                            "x-kubernetes-validations": [rule.to_schema() for rule in _ROOT_RULES],
                        }
                    },
                }
            ],
        },
    }
