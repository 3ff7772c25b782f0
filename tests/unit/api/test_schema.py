"""The schema made from the models says what the API server can check, and nothing that it refuses."""

from collections.abc import Iterator
from typing import Any

import pytest

from olivine_api.adapterbundle import AdapterBundleSpec, AdapterBundleStatus
from olivine_api.crd import finetunejob_crd
from olivine_api.finetunejob import MUTABLE_FIELDS, SUSPENDED_MUTABLE_PODS, FineTuneJobSpec, Scheduler
from olivine_api.schema import structural_schema
from olivine_api.status import FineTuneJobStatus


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its path."""
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from nodes(member, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("model", [FineTuneJobSpec, FineTuneJobStatus, AdapterBundleSpec, AdapterBundleStatus])
def test_everything_is_bounded(model: type[Any]) -> None:
    # An unbounded string, list or map would let a status outgrow 64 KiB and make CEL rules too expensive to install.
    for path, node in nodes(structural_schema(model)):
        if node.get("type") == "string" and "enum" not in node and "format" not in node:
            assert "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_a_nested_default_is_reached_from_the_top() -> None:
    # A default applies only where the parent exists: parents of defaults are {} by default, or required.
    schema = structural_schema(FineTuneJobSpec)
    assert schema["properties"]["checkpoint"]["default"] == {}
    assert schema["properties"]["checkpoint"]["properties"]["everySteps"]["default"] == 50
    assert "training" in schema["required"]


def test_exclusive_bounds_are_boolean() -> None:
    learning_rate = structural_schema(FineTuneJobSpec)["properties"]["training"]["properties"]["learningRate"]
    assert (learning_rate["minimum"], learning_rate["exclusiveMinimum"]) == (0, True)


def test_every_field_says_what_it_is_or_is_named_for_it() -> None:
    for path, node in nodes(structural_schema(FineTuneJobSpec)):
        if node.get("type") == "object" and "properties" in node:
            assert node.get("description"), f"{path} has no description"


def test_the_spec_is_fixed_once_a_child_exists_but_for_the_listed_fields() -> None:
    rules = finetunejob_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"]
    fixed = [rule["rule"] for rule in rules if "status.child" in rule["rule"]]
    assert any("self.spec.training == oldSelf.spec.training" in rule for rule in fixed)
    assert any("self.spec.pods.image == oldSelf.spec.pods.image" in rule for rule in fixed)
    for mutable in MUTABLE_FIELDS:
        assert not any(f"self.spec.{mutable} " in rule for rule in fixed)
    for elastic in SUSPENDED_MUTABLE_PODS:
        assert all("oldSelf.spec.suspend" in rule for rule in fixed if f"self.spec.pods.{elastic} " in rule)


def test_schedulers_are_those_of_transformers() -> None:
    from transformers.trainer_utils import SchedulerType

    assert {s.value for s in Scheduler} == {s.value for s in SchedulerType}
