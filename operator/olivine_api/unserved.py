"""What the API has and this release does not serve yet: each row is a rule, and goes once the build serves it."""

from collections.abc import Callable, Sequence
from typing import Any

from olivine_api.base import Rule


def _rule(path: str, wrong: str, is_wrong: Callable[[Any], bool], what: str, instead: str) -> Rule:
    """`wrong` is CEL over `self.<path>`; both it and `is_wrong` are asked only where the field is there."""
    parts = path.split(".")
    guards = [f"has(self.{'.'.join(parts[:depth])})" for depth in range(1, len(parts) + 1)]
    return Rule(
        cel=f"!({' && '.join(guards)} && {wrong})",
        holds=lambda spec: (value := _member(spec, parts)) is None or not is_wrong(value),
        message=f"{path}{what} is not served by this release: {instead}",
        field_path="." + path,
    )


def _member(spec: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if spec is None:
            return None
        by_alias = {field.alias or name: name for name, field in type(spec).model_fields.items()}
        spec = getattr(spec, by_alias[part])
    return spec


def _present(path: str, instead: str = "leave it out") -> Rule:
    return _rule(path, "true", lambda _: True, "", instead)


def _other(path: str, served: Sequence[str], instead: str) -> Rule:
    known = ", ".join(f"'{value}'" for value in served)
    return _rule(path, f"!(self.{path} in [{known}])", lambda value: value not in served, " with this value", instead)


UNSERVED_FINETUNEJOB = (
    _other("training.sharing.mode", ("Never",), "write Never"),
    Rule(
        cel="!has(self.evaluation.gates) || self.evaluation.gates.all(g, !has(g.manual) || !g.manual)",
        holds=lambda spec: all(not gate.manual for gate in spec.evaluation.gates or ()),
        message="evaluation.gates[].manual is not served by this release: write a metric with min, max or improvesOnBase",
        field_path=".evaluation.gates",
    ),
    _present("tracking.mlflow"),
    _present("search", "write one FineTuneJob for each value"),
    _other("reuse", ("Never",), "write Never"),
)
