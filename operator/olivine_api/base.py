"""The base of every API model, and validation rules that hold in Python and in the API server alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule over an object, said twice: `cel` for the API server, `holds` for Python; `message` says what to write.

    `cel` sees the object as `self`. A rule that mentions `oldSelf` (a transition) has no `holds`, one over members that have no
    structural type, which CEL does not see, has no `cel`.
    """

    message: str
    cel: str | None = None
    holds: Callable[[Any], bool] | None = None
    field_path: str | None = None

    def to_schema(self) -> dict[str, str]:
        """The rule as an item of x-kubernetes-validations."""
        if self.cel is None:
            raise ValueError(f"a rule without CEL: {self.message}")
        schema = {"rule": self.cel, "message": self.message}
        if self.field_path is not None:
            schema["fieldPath"] = self.field_path
        return schema


class ApiModel(BaseModel):
    """camelCase outside, snake_case inside, frozen; unknown fields are errors."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            if rule.holds is not None and not rule.holds(self):
                raise ValueError(rule.message)
        return self

    def to_json_dict(self) -> dict[str, Any]:
        """The object as it stands in Kubernetes: camelCase keys, absent members left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(ApiModel):
    """A part of status: a newer writer may have added fields, which an older reader drops."""

    model_config = ConfigDict(extra="ignore")
