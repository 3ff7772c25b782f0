"""Which job this process works for: the specification and the identity, as two sides of the supervisor's fence read them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from olivine_api.finetunejob import MUTABLE_FIELDS, FineTuneJobSpec, parse_spec
from olivine_api.reasons import Reason
from olivine_api.status import JobIdentity, Resolved
from olivine_trainer.errors import ConfigurationError

_SHOWN_FAULTS = 4
# What may differ between two attempts of one run: nothing of it decides which numbers come out.
_NOT_TRAINED_ON = (*MUTABLE_FIELDS, "pods", "checkpoint", "tracking")


@dataclass(frozen=True)
class Job:
    """A specification and whose it is."""

    spec: FineTuneJobSpec
    identity: JobIdentity
    plugins: Mapping[str, str] = field(default_factory=dict)
    """The Python files that the specification names, by `<ConfigMap>/<key>`."""

    @property
    def spec_digest(self) -> str:
        """sha256 (hex) of what decides how is trained: a part of the specification, and the plug-ins' code."""
        return spec_digest(self.spec, self.plugins)

    def input_digest(self, resolved: Resolved) -> str:
        """sha256 (hex) of what decides the artifact: specification, plug-ins, rows and base model by their content, wherever they lie."""
        return input_digest(self.spec, resolved, self.plugins)

    def save(self, path: Path) -> None:
        """Write both to one JSON file, for the worker processes."""
        path.write_text(
            json.dumps({"spec": self.spec.to_json_dict(), "identity": self.identity.to_json_dict(), "plugins": dict(self.plugins)})
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        raw = json.loads(path.read_text())
        return cls(spec=parse_spec(raw["spec"]), identity=JobIdentity.model_validate(raw["identity"]), plugins=raw["plugins"])


def spec_digest(spec: FineTuneJobSpec, plugins: Mapping[str, str] = {}) -> str:
    """sha256 (hex) of the canonical JSON of the specification, without what may differ between attempts, and of the plug-ins."""
    return _digest(_trained_on(spec, plugins))


def input_digest(spec: FineTuneJobSpec, resolved: Resolved, plugins: Mapping[str, str] = {}) -> str:
    """See Job.input_digest."""
    raw = _trained_on(spec, plugins)
    for key in ("storage", "reuse"):
        raw.pop(key, None)
    if "outputs" in raw:
        raw["outputs"] = {key: value for key, value in raw["outputs"].items() if key != "publish"}
    raw["model"] = {"digest": resolved.model.digest if resolved.model is not None else None}
    raw["data"] = {key: value for key, value in raw["data"].items() if key not in ("train", "validation", "test")}
    raw["data"]["digest"] = resolved.data.digest if resolved.data is not None else None
    raw["resolved"] = {"effectiveBatchSize": resolved.effective_batch_size, "precision": resolved.precision}
    return _digest(raw)


def _trained_on(spec: FineTuneJobSpec, plugins: Mapping[str, str]) -> dict[str, Any]:
    trained = {key: value for key, value in spec.to_json_dict().items() if key not in _NOT_TRAINED_ON}
    return trained | {"plugins": dict(plugins)} if plugins else trained


def _digest(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_checked(raw: Any, where: str) -> FineTuneJobSpec:
    """The specification in `raw`. Raises ConfigurationError with the first few faults, each naming its field."""
    if not isinstance(raw, dict):
        raise ConfigurationError(Reason.INVALID_SPEC, f"{where} holds no FineTuneJob: it must be a mapping with the job's fields")
    try:
        return parse_spec(raw)
    except ValidationError as error:
        raise ConfigurationError(Reason.INVALID_SPEC, f"{where} is not valid: {_faults(error)}") from None


def _faults(error: ValidationError) -> str:
    """The first few faults, unknown fields before all others: a misspelt name makes a required one look absent."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    told: list[str] = []
    for fault in faults[:_SHOWN_FAULTS]:
        field = ".".join(str(part) for part in fault["loc"]) or "spec"
        unknown = fault["type"] == "extra_forbidden"
        told.append(f"{field}: " + ("there is no such field" if unknown else fault["msg"].removeprefix("Value error, ")))
    more = f" (and {len(faults) - _SHOWN_FAULTS} more)" if len(faults) > _SHOWN_FAULTS else ""
    return "; ".join(told) + more
