"""From pydantic models to a structural schema (apiextensions.k8s.io/v1): refs inlined, unions of scalars as the API server wants them."""

from typing import Any

from olivine_api.base import ApiModel

# What passes through unchanged; titles, discriminators, additionalProperties: false and null defaults do not.
_KEPT = (
    "type",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
)


def structural_schema(model: type[ApiModel]) -> dict[str, Any]:
    """The OpenAPI v3 schema of a model, as it stands in a CustomResourceDefinition.

    Raises ValueError where a model uses what a structural schema cannot say.
    """
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _Converter(raw.get("$defs", {})).convert(raw)


def _rules_by_model() -> dict[str, list[dict[str, str]]]:
    """The rules of every ApiModel by its class name, which is the title of its JSON schema."""
    found: dict[str, list[dict[str, str]]] = {}
    pending: list[type[ApiModel]] = [ApiModel]
    while pending:
        for sub in pending.pop().__subclasses__():
            found[sub.__name__] = [rule.to_schema() for rule in sub.rules if rule.cel is not None]
            pending.append(sub)
    return found


class _Converter:
    def __init__(self, defs: dict[str, Any]) -> None:
        self._defs = defs
        self._rules = _rules_by_model()

    def convert(self, node: dict[str, Any]) -> dict[str, Any]:
        if "$ref" in node:
            # Siblings of a $ref (a field's own description or default) win over what it points to.
            target = self._defs[node["$ref"].rsplit("/", 1)[-1]]
            return self.convert({**target, **{k: v for k, v in node.items() if k != "$ref"}})
        if "anyOf" in node:
            return self._union(node)
        schema = {key: node[key] for key in _KEPT if key in node}
        schema |= _annotations(node)
        schema |= _exclusive_bounds(node)
        if "const" in node:
            schema["enum"] = [node["const"]]
        if node.get("format") == "date-time":
            schema["format"] = "date-time"
        if "items" in node:
            schema["items"] = self.convert(node["items"])
        if node.get("type") == "object":
            schema |= self._members(node)
        return schema

    def _members(self, node: dict[str, Any]) -> dict[str, Any]:
        if "properties" not in node:
            if not isinstance(node.get("additionalProperties"), dict):
                raise ValueError(f"an object without properties or value type: {node}")
            return {"additionalProperties": self.convert(node["additionalProperties"])}
        members: dict[str, Any] = {"properties": {name: self.convert(field) for name, field in node["properties"].items()}}
        if "required" in node:
            members["required"] = node["required"]
        if rules := self._rules.get(node.get("title", "")):
            members["x-kubernetes-validations"] = rules
        return members

    def _union(self, node: dict[str, Any]) -> dict[str, Any]:
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) == 1:
            return self.convert({**options[0], **{k: v for k, v in node.items() if k != "anyOf"}})
        types = {option.get("type") for option in options}
        if types == {"integer", "string"}:
            kept = {**_annotations(node), "x-kubernetes-int-or-string": True}
            pattern = next((option["pattern"] for option in options if "pattern" in option), None)
            return kept if pattern is None else {**kept, "pattern": pattern}
        if types <= {"number", "string", "boolean"}:
            # No structural type says "a number or a string": the operator's own check tells them from the rest.
            return {**_annotations(node), "x-kubernetes-preserve-unknown-fields": True}
        raise ValueError(f"a union that a structural schema cannot say: {node}")


def _annotations(node: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "description" in node:
        found["description"] = " ".join(str(node["description"]).split())
    if "properties" in node and node.get("default") is not None:
        # An object's default is empty: the API server fills in the members' own.
        found["default"] = {}
    elif node.get("default") not in (None, [], {}):
        found["default"] = node["default"]
    return found


def _exclusive_bounds(node: dict[str, Any]) -> dict[str, Any]:
    """JSON schema's numeric exclusive bounds as OpenAPI's boolean ones."""
    found: dict[str, Any] = {}
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            found |= {bound: node[exclusive], exclusive: True}
    return found
