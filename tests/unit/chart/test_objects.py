"""What the chart installs: rights, availability, who may talk to whom, what is watched."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from olivine_operator.runtime.metrics import Metrics, WatchReading
from tests.support.chart import CHART, NAMESPACE, Json, render_chart, the

Rule = tuple[str, str, str]  # group, resource, verb


def rules(role: Json) -> set[Rule]:
    return {
        (group, resource + (f" {name}" if name else ""), verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def operator_rights(values: Json | None = None) -> set[Rule]:
    """Cluster-wide."""
    return rules(the(render_chart(values=values), "ClusterRole", "olivine-operator"))


class TestRights:
    def test_nothing_of_users_secrets_and_nothing_by_wildcard(self) -> None:
        for values in ({}, {"lostPods": {"remove": True}, "policies": [{"namespaceSelector": {}}]}):
            rights = operator_rights(values)
            assert not [right for right in rights if "secrets" in right[1] or "*" in "".join(right)]
            assert not [right for right in rights if right[2] in ("impersonate", "escalate", "bind", "deletecollection")]
            assert sorted(right for right in rights if right[2] == "update") == [
                ("olivine.dev", "adapterbundles/finalizers", "update"),
                ("olivine.dev", "finetunejobs/finalizers", "update"),
            ]
            # It runs what users may run, and is nobody's back door: no pods made, no exec, no RBAC, no webhooks.
            assert ("", "pods", "create") not in rights
            assert not [right for right in rights if right[0] in ("rbac.authorization.k8s.io", "admissionregistration.k8s.io")]
            assert not [right for right in rights if right[0] == "apiextensions.k8s.io"]

    def test_in_its_own_namespace_one_secret_and_one_lease(self) -> None:
        role = the(render_chart(), "Role")
        assert role["metadata"]["namespace"] == NAMESPACE
        assert rules(role) == {
            ("", "secrets", "create"),
            ("", "secrets olivine-status-tls", "get"),
            ("", "secrets olivine-status-tls", "patch"),
            ("coordination.k8s.io", "leases", "create"),
            ("coordination.k8s.io", "leases olivine-operator", "get"),
            ("coordination.k8s.io", "leases olivine-operator", "patch"),
        }

    def test_rights_come_with_the_value_that_needs_them(self) -> None:
        base = operator_rights()
        lost = operator_rights({"lostPods": {"remove": True}})
        assert lost - base == {("", "pods", "delete"), ("", "pods/status", "patch")}
        chosen = operator_rights({"policies": [{"namespaceSelector": {}}]})
        assert chosen - base == {("", "namespaces", verb) for verb in ("get", "list", "watch")}

    def test_several_pods_and_queues_are_served(self) -> None:
        rights = operator_rights()
        needed = {
            ("batch", "jobs", "patch"),
            ("jobset.x-k8s.io", "jobsets", "create"),
            ("jobset.x-k8s.io", "jobsets", "patch"),
            ("kueue.x-k8s.io", "workloads", "patch"),
            ("", "services", "create"),
            ("authentication.k8s.io", "tokenreviews", "create"),
        }
        assert needed <= rights


class TestAvailability:
    def test_two_replicas_keep_apart_and_are_drained_one_by_one(self) -> None:
        objects = render_chart()
        deployment = the(objects, "Deployment")["spec"]
        labels = deployment["selector"]["matchLabels"]
        assert deployment["replicas"] == 2
        assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
        assert spread["labelSelector"] == {"matchLabels": labels}
        assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
        budget = the(objects, "PodDisruptionBudget")["spec"]
        assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, labels)

    def test_a_single_replica_is_in_no_drains_way(self) -> None:
        objects = render_chart(values={"replicas": 1})
        assert not [item for item in objects if item["kind"] == "PodDisruptionBudget"]

    def test_an_own_label_selector_of_a_constraint_is_kept(self) -> None:
        own = {
            "maxSkew": 2,
            "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"a": "b"}},
        }
        template = the(render_chart(values={"topologySpreadConstraints": [own]}), "Deployment")["spec"]["template"]
        assert template["spec"]["topologySpreadConstraints"] == [own]

    def test_a_replica_is_told_its_name_and_address(self) -> None:
        (container,) = the(render_chart(), "Deployment")["spec"]["template"]["spec"]["containers"]
        told = {item["name"]: item["valueFrom"]["fieldRef"]["fieldPath"] for item in container["env"] if "valueFrom" in item}
        assert told == {"OLIVINE_POD_NAME": "metadata.name", "OLIVINE_POD_IP": "status.podIP"}

    def test_pods_meet_the_restricted_level(self) -> None:
        pod = the(render_chart(), "Deployment")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]


class TestCustomResources:
    def test_they_are_kept_on_uninstall(self) -> None:
        found = [item for item in render_chart() if item["kind"] == "CustomResourceDefinition"]
        assert found
        for item in found:
            assert item["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"

    def test_they_may_be_left_to_others(self) -> None:
        kinds = {item["kind"] for item in render_chart(values={"crds": {"install": False}})}
        assert "CustomResourceDefinition" not in kinds
        assert "Deployment" in kinds


class World:
    """Pods by their labels and their namespaces', as a NetworkPolicy sees them."""

    def __init__(self, objects: list[Json]) -> None:
        self.policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
        self.operator = the(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
        (container,) = the(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
        self.ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    def may_enter(self, namespace: str, labels: Json, port: str) -> bool:
        """Whether a pod may connect to a port of the operator."""
        return self._judge("Ingress", "from", self.ports[port], Peer(namespace=namespace, labels=labels))

    def may_leave(self, port: int, peer: "Peer") -> bool:
        """Whether the operator may connect to a port elsewhere."""
        return self._judge("Egress", "to", port, peer)

    def _judge(self, kind: str, peers: str, port: int, peer: "Peer") -> bool:
        held = [
            policy
            for policy in self.policies
            if kind in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], self.operator)
        ]
        # No policy of this kind selects the pod: all is allowed.
        return not held or any(
            self._port(rule, port) and (not rule.get(peers) or any(peer.is_one_of(item) for item in rule[peers]))
            for policy in held
            for rule in policy["spec"].get(kind.lower(), [])
        )

    def _port(self, rule: Json, port: int) -> bool:
        return not rule.get("ports") or port in [self.ports.get(item["port"], item["port"]) for item in rule["ports"]]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A pod, or an address outside."""

    namespace: str = ""
    labels: Json | None = None
    address: str = ""

    def is_one_of(self, peer: Json) -> bool:
        if "ipBlock" in peer:
            return peer["ipBlock"]["cidr"] == f"{self.address}/32"
        if self.labels is None:
            return False
        namespace_labels = {"kubernetes.io/metadata.name": self.namespace}
        near = selects(peer["namespaceSelector"], namespace_labels) if "namespaceSelector" in peer else self.namespace == NAMESPACE
        return near and selects(peer.get("podSelector", {}), self.labels)


def selects(selector: Json, labels: Json) -> bool:
    operators: dict[str, Any] = {
        "Exists": lambda item: item["key"] in labels,
        "In": lambda item: labels.get(item["key"]) in item["values"],
    }
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        operators[item["operator"]](item) for item in selector.get("matchExpressions", [])
    )


TRAINER = {"olivine.dev/job": "tone", "olivine.dev/job-uid": "u"}
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}


class TestNetworkPolicies:
    """Nothing enforces them where tests run: this is what they say."""

    def test_reports_come_from_trainers_and_replicas_only(self) -> None:
        world = World(render_chart())
        assert world.may_enter("team-a", TRAINER, "status")
        assert world.may_enter(NAMESPACE, world.operator, "status")
        assert not world.may_enter("team-a", {"app": "web"}, "status")
        # Somebody who calls its pods operators elsewhere.
        assert not world.may_enter("team-a", world.operator, "status")
        assert world.may_enter("monitoring", PROMETHEUS, "http")

    def test_metrics_may_be_kept_to_some(self) -> None:
        peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}, "podSelector": {}}
        world = World(render_chart(values={"networkPolicy": {"metricsFrom": [peer]}}))
        assert world.may_enter("monitoring", PROMETHEUS, "http")
        assert not world.may_enter("team-a", TRAINER, "http")
        assert not world.may_enter("monitoring", PROMETHEUS, "status")
        assert world.may_enter("team-a", TRAINER, "status")

    def test_the_operator_goes_to_the_api_server_and_its_replicas_only(self) -> None:
        egress = {"enabled": True, "apiServer": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}
        world = World(render_chart(values={"networkPolicy": {"egress": egress}}))
        server, other = Peer(address="10.0.0.1"), Peer(address="10.0.0.2")
        assert world.may_leave(6443, server)
        assert not world.may_leave(6443, other)
        assert not world.may_leave(80, server)
        assert world.may_leave(8443, Peer(namespace=NAMESPACE, labels=world.operator))
        assert not world.may_leave(8443, Peer(namespace="team-a", labels=TRAINER))
        assert World(render_chart()).may_leave(80, other)

    def test_without_them_all_may_talk(self) -> None:
        world = World(render_chart(values={"networkPolicy": {"enabled": False}}))
        assert world.may_enter("team-a", {"app": "web"}, "status")


class TestMonitoring:
    enabled = {"metrics": {name: {"enabled": True} for name in ("serviceMonitor", "alerts", "dashboard")}}

    def known_metrics(self) -> set[str]:
        metrics = Metrics()
        metrics.observe_watches(lambda: [WatchReading(kind="Pod", told=1, behind=0)], lambda: 0.0)
        metrics.observe_phases(list, list)
        return (
            {sample.name for family in metrics.registry.collect() for sample in family.samples}
            | {f"{family.name}_total" for family in metrics.registry.collect() if family.type == "counter"}
            | {f"{family.name}_bucket" for family in metrics.registry.collect() if family.type == "histogram"}
        )

    @pytest.mark.parametrize("path", ["monitoring/alerts.yaml", "monitoring/dashboard.json"])
    def test_alerts_and_dashboard_ask_for_metrics_that_exist(self, path: str) -> None:
        text = (CHART / path).read_text()
        asked = set(re.findall(r"\bolivine_\w+", text))
        assert asked
        assert asked <= self.known_metrics()

    def test_the_service_monitor_finds_the_metrics_service(self) -> None:
        objects = render_chart(values=self.enabled)
        monitor, service = the(objects, "ServiceMonitor")["spec"], the(objects, "Service", "olivine-metrics")
        assert selects(monitor["selector"], service["metadata"]["labels"])
        assert not selects(monitor["selector"], the(objects, "Service", "olivine-status")["metadata"]["labels"])
        assert monitor["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]

    def test_every_alert_says_what_it_means(self) -> None:
        groups = the(render_chart(values=self.enabled), "PrometheusRule")["spec"]["groups"]
        operations = (Path(CHART).parents[1] / "docs/operations.md").read_text()
        for rule in [rule for group in groups for rule in group["rules"]]:
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["alert"] in operations

    def test_the_dashboard_is_json_with_a_query_in_every_panel(self) -> None:
        found = the(render_chart(values=self.enabled), "ConfigMap", "olivine-dashboard")
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        dashboard = json.loads(found["data"]["olivine.json"])
        assert all(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])

    def test_none_of_it_is_there_by_default(self) -> None:
        kinds = {item["kind"] for item in render_chart()}
        assert not kinds & {"ServiceMonitor", "PrometheusRule"}
