"""Policies by namespace, with the operator and a real API server: refused with a sentence, or let through."""

import itertools
from collections.abc import Iterator

import pytest

from olivine_api.status import Phase
from tests.api.jobs import Namespace
from tests.api.kube import Json, Kube
from tests.api.operator_process import CLOSED_LABEL
from tests.support.wait import wait_for

pytestmark = pytest.mark.usefixtures("operator")
STORAGE = {"uri": "s3://olivine/runs", "secretRef": {"name": "team-storage"}}


def namespace(kube: Kube, name: str, policy: str) -> Iterator[Namespace]:
    kube.must("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": {CLOSED_LABEL: policy}}})
    wait_for("the ServiceAccount", lambda: kube.request("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default").ok, seconds=10)
    yield Namespace(kube, name)
    kube.must("DELETE", Namespace(kube, name).path("/apis/olivine.dev/v1alpha1/namespaces/{ns}/finetunejobs"))


@pytest.fixture
def closed(kube: Kube) -> Iterator[Namespace]:
    yield from namespace(kube, "policy-closed", "closed")


@pytest.fixture
def opened(kube: Kube) -> Iterator[Namespace]:
    yield from namespace(kube, "policy-open", "open")


def test_a_namespaces_policy_refuses_and_says_whom_to_ask(closed: Namespace) -> None:
    wrong: dict[str, tuple[Json, str]] = {
        "secret": (
            {"storage": STORAGE | {"secretRef": {"name": "other"}}},
            "spec.storage.secretRef.name: other is not allowed in this namespace: the Secrets allowed are team-*,"
            " or ask the administrator for policy.secretNames",
        ),
        "place": ({"storage": STORAGE | {"uri": "s3://elsewhere"}}, "spec.storage.uri: s3://elsewhere is not allowed"),
        "image": ({"pods": {"image": "own:1"}}, "spec.pods.image: own:1 is not allowed"),
        "account": ({"pods": {"serviceAccountName": "admin"}}, "spec.pods.serviceAccountName: admin is not allowed"),
        "node": (
            {"pods": {"volumes": [{"name": "a", "hostPath": {"path": "/data"}}]}},
            "spec.pods.volumes[0].hostPath: /data is not",
        ),
        "env": (
            {"pods": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}}]}},
            "spec.pods.env[0].valueFrom.secretKeyRef.name: x is not allowed",
        ),
    }
    for name, (spec, _) in wrong.items():
        closed.apply(name, **spec)
    for name, (_, said) in wrong.items():
        status = closed.wait_phase(name, Phase.FAILED)
        message = next(c.message for c in status.conditions if c.type == "Failed")
        assert message.startswith(said), message
        assert closed.children("/apis/batch/v1/namespaces/{ns}/jobs", name) == []
    closed.apply("right", storage=STORAGE)
    closed.wait_job("right")


def test_another_namespaces_policy_lets_through_what_this_one_refuses(opened: Namespace, ns: Namespace) -> None:
    spec: Json = {
        "model": {"uri": "file:///models/tiny"},
        "pods": {"image": "own:1", "volumes": [{"name": "models", "hostPath": {"path": "/models"}}]},
    }
    opened.apply("own", **spec)
    job = opened.wait_job("own")
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "own:1"
    assert "/models" in [volume.get("hostPath", {}).get("path") for volume in pod["volumes"]]
    # The default, where no policy selects the namespace.
    ns.apply("own", **spec)
    status = ns.wait_phase("own", Phase.FAILED)
    message = next(c.message for c in status.conditions if c.type == "Failed")
    assert "spec.model.uri: file:///models/tiny is not allowed" in message
    assert "spec.pods.volumes[0].hostPath: /models is not allowed" in message


def test_a_namespace_that_is_labelled_later_gets_its_policy(ns: Namespace) -> None:
    ns.apply("before", pods={"image": "own:1"})
    ns.wait_job("before")
    ns.kube.merge(f"/api/v1/namespaces/{ns.name}", {"metadata": {"labels": {CLOSED_LABEL: "closed"}}})
    names = (f"after-{number}" for number in itertools.count())

    def refused() -> bool:
        """Of jobs made one after another: the watch tells of the label in moments, not at once."""
        name = next(names)
        ns.apply(name, pods={"image": "own:1"})
        decided = wait_for("a verdict", lambda: ns.condition(name, "Validated")[0] or None, seconds=10, every=0.1)
        return decided == "False"

    wait_for("the policy holds", refused, seconds=10, every=0.5)
    # What runs is not judged again.
    assert ns.status("before").phase is not Phase.FAILED
