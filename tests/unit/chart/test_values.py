"""Values of the chart: each does something, and each wrong one is refused before anything is installed."""

from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from olivine_operator.plan.settings import OperatorSettings
from tests.support.chart import CHART, Json, helm_template, render_chart, settings_of, the

# Another value for each leaf of values.yaml, and what else has to be set for it to matter.
OTHER: dict[str, tuple[Any, Json]] = {
    "replicas": (3, {}),
    "podDisruptionBudget.enabled": (False, {}),
    "topologySpreadConstraints": ([], {}),
    "priorityClassName": ("system-cluster-critical", {}),
    "image.repository": ("registry.example/operator", {}),
    "image.tag": ("2", {}),
    "image.pullPolicy": ("Always", {}),
    "imagePullSecrets": ([{"name": "registry"}], {}),
    "trainer.image.repository": ("registry.example/trainer", {}),
    "trainer.image.tag": ("2", {}),
    "trainer.image.pullPolicy": ("Never", {}),
    "trainer.podDefaults.volumes": ([{"name": "a", "emptyDir": {}}], {}),
    "trainer.podDefaults.volumeMounts": ([{"name": "a", "mountPath": "/a"}], {}),
    "trainer.podDefaults.env": ([{"name": "A", "value": "b"}], {}),
    "trainer.podDefaults.resources": ({"limits": {"cpu": 1}}, {}),
    "trainer.podDefaults.nodeSelector": ({"pool": "gpu"}, {}),
    "trainer.podDefaults.tolerations": ([{"operator": "Exists"}], {}),
    "trainer.podDefaults.imagePullSecrets": ([{"name": "registry"}], {}),
    "trainer.podDefaults.affinity": ({"nodeAffinity": {}}, {}),
    "trainer.podDefaults.topologySpreadConstraints": ([{"maxSkew": 1, "topologyKey": "zone"}], {}),
    "trainer.podDefaults.priorityClassName": ("training", {}),
    "trainer.podDefaults.runtimeClassName": ("nvidia", {}),
    "trainer.podDefaults.schedulerName": ("volcano", {}),
    "trainer.podDefaults.labels": ({"cost": "ml"}, {}),
    "trainer.podDefaults.annotations": ({"a": "b"}, {}),
    "trainer.sharedMemory": ("1Gi", {}),
    "policy.allowFileUris": (True, {}),
    "policy.allowTrustRemoteCode": (True, {}),
    "policy.allowHostPath": (True, {}),
    "policy.allowPlugins": (True, {}),
    "policy.secretNames": (["olivine-*"], {}),
    "policy.serviceAccountNames": (["trainer"], {}),
    "policy.storagePrefixes": (["s3://bucket/team-a"], {}),
    "policy.images": ([], {}),
    "policies": ([{"namespaceSelector": {"matchLabels": {"team": "a"}}, "secretNames": []}], {}),
    "lostPods.timeoutSeconds": (60, {}),
    "lostPods.remove": (True, {}),
    "statusIntervalSeconds": (10, {}),
    "resyncSeconds": (60, {}),
    "workers": (4, {}),
    "logLevel": ("debug", {}),
    "resources.requests.cpu": ("1", {}),
    "resources.requests.memory": ("1Gi", {}),
    "resources.limits.memory": ("1Gi", {}),
    "volumes": ([{"name": "a", "emptyDir": {}}], {}),
    "volumeMounts": ([{"name": "a", "mountPath": "/a"}], {}),
    "nodeSelector": ({"pool": "system"}, {}),
    "tolerations": ([{"operator": "Exists"}], {}),
    "affinity": ({"nodeAffinity": {}}, {}),
    "podAnnotations": ({"a": "b"}, {}),
    "networkPolicy.enabled": (False, {}),
    "networkPolicy.metricsFrom": ([{"namespaceSelector": {"matchLabels": {"a": "b"}}}], {}),
    "networkPolicy.egress.enabled": (True, {}),
    "networkPolicy.egress.apiServer": ([{"ipBlock": {"cidr": "10.0.0.1/32"}}], {"networkPolicy": {"egress": {"enabled": True}}}),
    "networkPolicy.egress.apiServerPorts": ([16443], {"networkPolicy": {"egress": {"enabled": True}}}),
    "metrics.serviceMonitor.enabled": (True, {}),
    "metrics.serviceMonitor.interval": ("1m", {"metrics": {"serviceMonitor": {"enabled": True}}}),
    "metrics.serviceMonitor.labels": ({"release": "p"}, {"metrics": {"serviceMonitor": {"enabled": True}}}),
    "metrics.alerts.enabled": (True, {}),
    "metrics.alerts.labels": ({"release": "p"}, {"metrics": {"alerts": {"enabled": True}}}),
    "metrics.dashboard.enabled": (True, {}),
    "metrics.dashboard.labels": ({"folder": "p"}, {"metrics": {"dashboard": {"enabled": True}}}),
    "crds.install": (False, {}),
}

WRONG: dict[str, tuple[Json, str]] = {
    "unknown value": ({"replica": 2}, "replica"),
    "unknown value inside": ({"networkPolicy": {"enable": True}}, "enable"),
    "half a replica": ({"replicas": 1.5}, "replicas"),
    "text for a number": ({"replicas": "two"}, "replicas"),
    "text for a switch": ({"podDisruptionBudget": {"enabled": "yes"}}, "enabled"),
    "image as one word": ({"image": "registry/operator:1"}, "image"),
    "image without a name": ({"trainer": {"image": {"repository": ""}}}, "repository"),
    "unknown pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    "size without a unit that is known": ({"trainer": {"sharedMemory": "1 GB"}}, "sharedMemory"),
    "unknown default": ({"trainer": {"podDefaults": {"image": "x"}}}, "image"),
    "unknown permission": ({"policy": {"allowEverything": True}}, "allowEverything"),
    "one name for a list": ({"policy": {"secretNames": "olivine-*"}}, "secretNames"),
    "empty name": ({"policy": {"secretNames": [""]}}, "secretNames"),
    "prefix without a scheme": ({"policy": {"storagePrefixes": ["bucket/team-a"]}}, "storagePrefixes"),
    "prefix with a wildcard": ({"policy": {"storagePrefixes": ["s3://bucket/*"]}}, "storagePrefixes"),
    "policy for nobody": ({"policies": [{"allowFileUris": True}]}, "namespaceSelector"),
    "policies as a map": ({"policies": {"team-a": {}}}, "policies"),
    "unknown operator": (
        {"policies": [{"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Like", "values": ["b"]}]}}]},
        "operator",
    ),
    "expression without values": (
        {"policies": [{"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]},
        "values",
    ),
    "lost at once": ({"lostPods": {"timeoutSeconds": 0}}, "timeoutSeconds"),
    "too often": ({"statusIntervalSeconds": 0.1}, "statusIntervalSeconds"),
    "too often compared": ({"resyncSeconds": 1}, "resyncSeconds"),
    "no workers": ({"workers": 0}, "workers"),
    "unknown level": ({"logLevel": "trace"}, "logLevel"),
    "peers of nothing": ({"networkPolicy": {"metricsFrom": [{}]}}, "metricsFrom"),
    "port out of range": ({"networkPolicy": {"egress": {"apiServerPorts": [70000]}}}, "apiServerPorts"),
    "no port at all": ({"networkPolicy": {"egress": {"apiServerPorts": []}}}, "apiServerPorts"),
    "interval without a unit": ({"metrics": {"serviceMonitor": {"interval": "30"}}}, "interval"),
    "annotation that is a number": ({"podAnnotations": {"a": 1}}, "podAnnotations"),
    "several CRD switches": ({"crds": {"keep": True}}, "keep"),
}


def leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value and path != "metrics.dashboard.labels":
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path


def with_value(values: Json, path: str, value: Any) -> Json:
    head, _, rest = path.partition(".")
    return values | {head: with_value(values.get(head, {}), rest, value) if rest else value}


def test_every_value_has_a_row_here() -> None:
    values = YAML(typ="safe", pure=True).load((CHART / "values.yaml").read_text())
    assert set(leaves(values)) == set(OTHER)


@pytest.mark.parametrize("path", OTHER)
def test_each_value_does_something(path: str) -> None:
    value, given = OTHER[path]
    before, after = helm_template(given), helm_template(with_value(given, path, value))
    assert after.returncode == 0, after.stderr
    assert before.stdout != after.stdout


@pytest.mark.parametrize(("values", "named"), WRONG.values(), ids=WRONG)
def test_each_wrong_value_is_refused_by_its_name(values: Json, named: str) -> None:
    said = helm_template(values)
    assert said.returncode != 0, said.stdout
    assert named in said.stderr


def test_the_operator_reads_what_the_chart_writes() -> None:
    policies = [
        {
            "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]},
            "allowHostPath": True,
            "images": ["registry.example/*"],
        }
    ]
    settings = OperatorSettings.model_validate(settings_of(render_chart(values={"policies": policies, "statusIntervalSeconds": 7})))
    assert settings.status_interval_seconds == 7
    assert settings.policies[0].namespace_selector.match_expressions[0].values == ["a", "b"]
    assert settings.policies[0].images == ["registry.example/*"]
    # What is left out allows everything; an empty list is kept as it is.
    assert settings.policies[0].secret_names is None
    assert settings.policy.secret_names is None
    closed = OperatorSettings.model_validate(settings_of(render_chart(values={"policy": {"secretNames": []}})))
    assert closed.policy.secret_names == []


def test_changed_settings_start_new_pods() -> None:
    def digest(values: Json) -> str:
        template = the(render_chart(values=values), "Deployment")["spec"]["template"]
        return template["metadata"]["annotations"]["olivine.dev/settings-digest"]

    assert digest({}) == digest({"replicas": 3})
    assert digest({}) != digest({"policy": {"allowFileUris": True}})
