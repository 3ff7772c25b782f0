"""The administrator's policy: which one holds in a namespace, and what of a spec each of its rules refuses."""

from typing import Any

import pytest

from olivine_api.reasons import Reason
from olivine_operator.plan.policy import policy_for
from olivine_operator.plan.settings import NamespacePolicy, NamespaceSelector, OperatorSettings, Policy, TrainerSettings
from olivine_operator.plan.validation import Refusal, validate
from tests.unit.operator.builders import SPEC

EVERYTHING = Policy(allow_file_uris=True, allow_trust_remote_code=True, allow_host_path=True, allow_plugins=True)


def judged(policy: Policy, **spec: Any) -> str | None:
    """The refusal; None where the spec is accepted."""
    found = validate(SPEC | spec, policy)
    return found.message if isinstance(found, Refusal) else None


def pods(**members: Any) -> dict[str, Any]:
    return {"pods": members}


def volumes(**source: Any) -> dict[str, Any]:
    return pods(volumes=[{"name": "extra", **source}])


SECRETS: dict[str, tuple[str, dict[str, Any]]] = {
    "second place": (
        "spec.outputs.publish.secretRef.name",
        {"outputs": {"publish": {"uri": "hf://o/m", "secretRef": {"name": "other"}}}},
    ),
    "storage": ("spec.storage.secretRef.name", {"storage": {"uri": "s3://b/p", "secretRef": {"name": "other"}}}),
    "model": ("spec.model.secretRef.name", {"model": {"uri": "hf://o/m", "secretRef": {"name": "other"}}}),
    "training rows": (
        "spec.data.train.secretRef.name",
        {"data": SPEC["data"] | {"train": {"uri": "s3://b/r.jsonl", "secretRef": {"name": "other"}}}},
    ),
    "validation rows": (
        "spec.data.validation.secretRef.name",
        {"data": SPEC["data"] | {"validation": {"uri": "s3://b/r.jsonl", "secretRef": {"name": "other"}}}},
    ),
    "image": ("spec.pods.imagePullSecrets[1].name", pods(imagePullSecrets=[{"name": "team-registry"}, {"name": "other"}])),
    "one variable": (
        "spec.pods.env[0].valueFrom.secretKeyRef.name",
        pods(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "other", "key": "k"}}}]),
    ),
    "all variables": ("spec.pods.envFrom[0].secretRef.name", pods(envFrom=[{"secretRef": {"name": "other"}}])),
    "files": ("spec.pods.volumes[0].secret.secretName", volumes(secret={"secretName": "other"})),
}


@pytest.mark.parametrize(("path", "spec"), SECRETS.values(), ids=SECRETS)
def test_a_secret_counts_wherever_it_is_named(path: str, spec: dict[str, Any]) -> None:
    listed = EVERYTHING.model_copy(update={"secret_names": ["olivine-*", "team-registry"]})
    said = judged(listed, **spec)
    assert said is not None
    assert said.startswith(f"{path}: other is not allowed in this namespace: the Secrets allowed are olivine-* or team-registry")
    assert "ask the administrator for policy.secretNames" in said
    assert judged(EVERYTHING, **spec) is None
    assert judged(EVERYTHING.model_copy(update={"secret_names": ["oth?r", "team-*"]}), **spec) is None
    assert "allowed are none" in (judged(EVERYTHING.model_copy(update={"secret_names": []}), **spec) or "")


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "code of the model": (
        {"allow_trust_remote_code": False},
        {"model": {"uri": "hf://o/m", "trustRemoteCode": True}},
        "spec.model.trustRemoteCode: true is not allowed in this namespace",
    ),
    "a path of the node": (
        {"allow_host_path": False},
        volumes(hostPath={"path": "/data"}),
        "spec.pods.volumes[0].hostPath: /data is not allowed in this namespace: use a persistentVolumeClaim, "
        "or ask the administrator for policy.allowHostPath",
    ),
    "files of the pod": (
        {"allow_file_uris": False},
        {"model": {"uri": "file:///m"}},
        "spec.model.uri: file:///m is not allowed in this namespace: put the files into object storage (s3://), "
        "or ask the administrator for policy.allowFileUris",
    ),
    "another account": (
        {"service_account_names": ["trainer"]},
        pods(serviceAccountName="admin"),
        "spec.pods.serviceAccountName: admin is not allowed in this namespace: the ServiceAccounts allowed are trainer",
    ),
    "no account where some are listed": (
        {"service_account_names": ["trainer"]},
        {},
        "spec.pods.serviceAccountName: default is not allowed in this namespace: the ServiceAccounts (a job that names none",
    ),
    "another bucket": (
        {"storage_prefixes": ["s3://models/team-a"]},
        {},
        "spec.storage.uri: s3://olivine/runs is not allowed in this namespace: begin with s3://models/team-a",
    ),
    "a second place elsewhere": (
        {"storage_prefixes": ["s3://olivine"]},
        {"outputs": {"publish": {"uri": "hf://other/name"}}},
        "spec.outputs.publish.uri: hf://other/name is not allowed in this namespace: begin with s3://olivine",
    ),
    "a bucket whose name only begins alike": (
        {"storage_prefixes": ["s3://oliv"]},
        {},
        "spec.storage.uri: s3://olivine/runs is not allowed",
    ),
    "another image": (
        {"images": ["registry.example/olivine/*"]},
        pods(image="registry.example/other/trainer:1"),
        "spec.pods.image: registry.example/other/trainer:1 is not allowed in this namespace: the images allowed are",
    ),
}


@pytest.mark.parametrize(("policy", "spec", "said"), WRONG.values(), ids=WRONG)
def test_each_rule_refuses_with_the_field_its_value_and_whom_to_ask(
    policy: dict[str, Any], spec: dict[str, Any], said: str
) -> None:
    found = judged(EVERYTHING.model_copy(update=policy), **spec)
    assert found is not None
    assert found.startswith(said)
    assert "ask the administrator for policy." in found
    assert found.endswith("use a new name, or kubectl replace --force")
    assert judged(EVERYTHING, **spec) is None


RIGHT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the prefix itself": ({"storage_prefixes": ["s3://olivine/runs/"]}, {}),
    "below the prefix": ({"storage_prefixes": ["s3://other", "s3://olivine/"]}, {}),
    "a second place that may be": (
        {"storage_prefixes": ["s3://olivine", "hf://team"]},
        {"outputs": {"publish": {"uri": "hf://team/name"}}},
    ),
    "an image of the registry": ({"images": ["registry.example/*"]}, pods(image="registry.example/a/b:1")),
    "no image": ({"images": []}, {}),
    "the default account": ({"service_account_names": ["default"]}, {}),
    "other volumes": (
        {"allow_host_path": False, "secret_names": []},
        pods(volumes=[{"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "c"}}]),
    ),
    "words of one's own that look like Secrets": (
        {"secret_names": []},
        pods(labels={"secretName": "x"}, nodeSelector={"secretRef": "y"}, annotations={"uri": "file:///x"}),
    ),
}


@pytest.mark.parametrize(("policy", "spec"), RIGHT.values(), ids=RIGHT)
def test_what_is_within_the_policy_is_accepted(policy: dict[str, Any], spec: dict[str, Any]) -> None:
    assert judged(Policy(**policy), **spec) is None


@pytest.mark.parametrize(
    "source",
    [
        {"projected": {"sources": [{"secret": {"name": "other"}}]}},
        {"csi": {"driver": "d", "nodePublishSecretRef": {"name": "other"}}},
        {"nfs": {"server": "s", "path": "/"}},
        {"iscsi": {"targetPortal": "p", "iqn": "i", "lun": 0}},
        {"ephemeral": {}},
        {"image": {"reference": "i"}},
    ],
)
def test_other_kinds_of_volumes_cannot_slip_past(source: dict[str, Any]) -> None:
    found = validate(SPEC | volumes(**source), EVERYTHING)
    assert isinstance(found, Refusal)
    assert found.reason == Reason.INVALID_SPEC
    assert f"spec.pods.volumes[0].{next(iter(source))}" in found.message


def test_many_violations_are_told_together_and_counted() -> None:
    spec = volumes(hostPath={"path": "/a"})["pods"] | {"image": "i", "envFrom": [{"secretRef": {"name": "s"}}]}
    closed = Policy(secret_names=[], images=[], storage_prefixes=[])
    found = validate(SPEC | {"pods": spec}, closed)
    assert isinstance(found, Refusal)
    assert found.reason == Reason.NOT_ALLOWED_BY_POLICY
    assert found.message.count(" is not allowed in this namespace") == 3
    assert "and 1 more" in found.message


def selector(**labels: str) -> NamespaceSelector:
    return NamespaceSelector(match_labels=labels)


class TestSelection:
    settings = OperatorSettings(
        namespace="olivine-system",
        trainer=TrainerSettings(image="trainer:1"),
        policy=Policy(secret_names=["default"]),
        policies=[
            NamespacePolicy(namespace_selector=selector(team="a", stage="prod"), secret_names=["prod"]),
            NamespacePolicy(namespace_selector=selector(team="a"), allow_host_path=True, images=["x/*"]),
            NamespacePolicy(
                namespace_selector=NamespaceSelector.model_validate(
                    {
                        "matchExpressions": [
                            {"key": "stage", "operator": "In", "values": ["dev", "test"]},
                            {"key": "team", "operator": "NotIn", "values": ["b"]},
                            {"key": "owner", "operator": "Exists"},
                            {"key": "frozen", "operator": "DoesNotExist"},
                        ]
                    }
                ),
                secret_names=["expressions"],
            ),
        ],
    )

    @pytest.mark.parametrize(
        ("labels", "names"),
        {
            "the first that matches": ({"team": "a", "stage": "prod"}, ["prod"]),
            "nothing of the default is in it": ({"team": "a"}, None),
            "expressions": ({"stage": "dev", "owner": "x"}, ["expressions"]),
            "value not in the list": ({"stage": "prod", "owner": "x"}, ["default"]),
            "value excluded": ({"stage": "dev", "owner": "x", "team": "b"}, ["default"]),
            "label missing": ({"stage": "dev"}, ["default"]),
            "label present": ({"stage": "dev", "owner": "x", "frozen": ""}, ["default"]),
            "no labels": ({}, ["default"]),
        }.values(),
    )
    def test_the_first_whose_selector_matches_holds(self, labels: dict[str, str], names: list[str] | None) -> None:
        assert policy_for(self.settings, labels).secret_names == names

    def test_the_charts_own_image_needs_no_leave(self) -> None:
        held = policy_for(self.settings, {"team": "a"})
        assert judged(held, **pods(image="trainer:1")) is None
        assert judged(held, **pods(image="trainer:2")) is not None

    def test_an_empty_selector_matches_every_namespace(self) -> None:
        every = NamespacePolicy(namespace_selector=NamespaceSelector(), secret_names=["every"])
        settings = self.settings.model_copy(update={"policies": [every]})
        assert policy_for(settings, {}).secret_names == ["every"]
