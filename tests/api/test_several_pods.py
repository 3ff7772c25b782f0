"""Jobs of several pods against the real Job controller: names, world, incidents, another size."""

import json
from typing import Any

from olivine_api import names
from olivine_api.status import Phase
from tests.api.jobs import FINAL, Namespace, words
from tests.api.kube import JOBS, SERVICES, Json
from tests.api.operator_process import OperatorProcess
from tests.support.wait import wait_for


def world(ns: Namespace, name: str) -> Json:
    return json.loads(ns.config_maps(name)[0]["data"][names.CONFIG_WORLD])


def runs(ns: Namespace, name: str, count: int, *, without: tuple[str, ...] = ()) -> list[Json]:
    pods = ns.wait_pods(name, count, without=without)
    for pod in pods:
        ns.pod_runs(pod)
    ns.wait_phase(name, Phase.RUNNING)
    return pods


def names_of(pods: list[Json]) -> tuple[str, ...]:
    return tuple(pod["metadata"]["name"] for pod in pods)


def condition_of(job: Json, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in job.get("status", {}).get("conditions", ()))


def test_two_pods_find_each_other_and_the_first_ones_end_ends_the_job(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("pair", pods={"count": 2, "processesPerPod": 2})
    job = ns.wait_job("pair")
    child = job["metadata"]["name"]
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    first, second = ns.wait_pods("pair", 2)
    assert (first["spec"]["hostname"], first["spec"]["subdomain"]) == (f"{child}-0", child)
    assert second["spec"]["hostname"] == f"{child}-1"
    leader = next(item for item in first["spec"]["containers"][0]["env"] if item["name"] == names.ENV_LEADER_HOST)
    assert leader["value"] == f"{child}-0.{child}"
    service = ns.kube.must("GET", ns.path(SERVICES, child))
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert world(ns, "pair") == {"pods": 2, "processesPerPod": 2}

    ns.pod_runs(first)
    ns.pod_runs(second)
    ns.wait_phase("pair", Phase.RUNNING)
    ns.pod_ends(first, 0, {"reason": "Completed", "message": "done", "snapshot": FINAL})
    status = ns.wait_phase("pair", Phase.SUCCEEDED)
    assert status.metrics["accuracy"] == 0.94
    assert status.artifacts


def test_two_pods_that_fail_together_are_one_incident_and_a_lost_peer_is_none(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("together", pods={"count": 2})
    first, second = runs(ns, "together", 2)
    ns.pod_ends(second, 137)
    ns.pod_ends(first, 31, words("PeerLost", "lost a peer", attempt=1))
    message = ns.wait_reason("together", "Running", "Restarting")
    assert "left no message" in message
    status = ns.status("together")
    assert (status.restarts, len(status.restart_times)) == (1, 1)
    assert status.last_failure is not None
    assert status.last_failure.reason == "PodFailed"
    # Both indexes come again, each after the Job controller's first delay.
    runs(ns, "together", 2, without=names_of([first, second]))
    assert ns.status("together").restarts == 1


def test_a_service_that_was_deleted_is_made_again_when_the_pods_have_lost_each_other(
    ns: Namespace, operator: OperatorProcess
) -> None:
    ns.apply("nameless", pods={"count": 2})
    _, second = runs(ns, "nameless", 2)
    path = ns.path(SERVICES, ns.wait_job("nameless")["metadata"]["name"])
    uid = ns.kube.must("GET", path)["metadata"]["uid"]
    ns.kube.must("DELETE", path)
    ns.pod_ends(second, 31, words("PeerLost", "the first pod was not found", attempt=1))
    wait_for("the Service", lambda: ns.kube.request("GET", path).ok, seconds=15)
    found = ns.kube.must("GET", path)
    assert found["metadata"]["uid"] != uid
    assert found["spec"]["clusterIP"] == "None"


def suspend(ns: Namespace, name: str) -> Json:
    ns.change(name, suspend=True)
    ns.wait_phase(name, Phase.SUSPENDED)
    wait_for("no pods", lambda: not ns.pods(name), seconds=15)
    ns.wait_reason(name, "Running", "SuspendedByUser")
    return ns.wait_job(name)


def test_while_suspended_the_same_job_gets_another_size_and_its_world_follows(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("grow", pods={"count": 2})
    runs(ns, "grow", 2)
    before = suspend(ns, "grow")
    wishes: dict[str, Any] = {"count": 3, "resources": {"limits": {"cpu": "1", "memory": "3Gi"}}}
    ns.change("grow", pods=wishes)
    wait_for("three", lambda: ns.wait_job("grow")["spec"]["parallelism"] == 3, seconds=15)
    job = ns.wait_job("grow")
    assert job["metadata"]["uid"] == before["metadata"]["uid"]
    assert job["spec"]["completions"] == 3
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "1", "memory": "3Gi"}
    ns.change("grow", suspend=False)
    pods = ns.wait_pods("grow", 3)
    assert world(ns, "grow")["pods"] == 3
    assert pods[0]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "3Gi"
    assert ns.condition("grow", "Running")[1] != "Resizing"
    assert ns.status("grow").restarts == 0


def test_one_pod_becomes_two_by_a_new_job_at_no_cost(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("split")
    runs(ns, "split", 1)
    before = suspend(ns, "split")
    ns.change("split", pods={"count": 2})
    wait_for("the old one goes", lambda: not ns.children(JOBS, "split"), seconds=15)
    ns.change("split", suspend=False)
    pods = ns.wait_pods("split", 2)
    assert pods[0]["spec"]["subdomain"] == before["metadata"]["name"]
    assert world(ns, "split")["pods"] == 2
    status = ns.status("split")
    assert (status.restarts, status.last_failure) == (0, None)


def test_a_size_that_is_refused_is_told_and_can_be_corrected(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("typo", pods={"count": 2})
    runs(ns, "typo", 2)
    suspend(ns, "typo")
    ns.change("typo", pods={"resources": {"requests": {"memory": "4Gi"}, "limits": {"memory": "2Gi"}}}, suspend=False)
    message = ns.wait_reason("typo", "Running", "InvalidSpec")
    assert "must be less than or equal to memory limit" in message
    assert ns.status("typo").phase is Phase.PENDING
    ns.change("typo", suspend=True)
    ns.wait_phase("typo", Phase.SUSPENDED)
    ns.change("typo", pods={"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}}, suspend=False)
    ns.wait_pods("typo", 2)
    wait_for("it goes on", lambda: ns.condition("typo", "Running")[1] != "InvalidSpec", seconds=15)
    assert ns.status("typo").restarts == 0


def test_the_api_server_takes_everything_that_a_user_may_choose(ns: Namespace, operator: OperatorProcess) -> None:
    ns.kube.must("POST", ns.path("/api/v1/namespaces/{ns}/configmaps"), {"metadata": {"name": "more"}, "data": {"A": "1"}})
    wishes: dict[str, Any] = {
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 5, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"team": "t"}}}}
        ]}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "schedulerName": "another",
        "env": [{"name": "N", "valueFrom": {"configMapKeyRef": {"name": "more", "key": "A"}}}],
        "envFrom": [{"prefix": "MORE_", "configMapRef": {"name": "more"}}],
        "volumes": [{"name": "v", "configMap": {"name": "more"}}, {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "c", "mountPath": "/c", "subPath": "x", "readOnly": True}],
        "sharedMemory": "1Gi",
        "labels": {"team": "t"},
        "annotations": {"example.com/note": "n"},
        "resources": {"limits": {"cpu": 1, "memory": "2Gi", "nvidia.com/gpu": 1}},
    }  # fmt: skip
    ns.apply("rich", pods=wishes, model={"uri": "pvc://models/tiny", "cache": {"claimName": "cache"}})
    pod = ns.wait_pod("rich")
    assert pod["metadata"]["labels"]["team"] == "t"
    assert pod["metadata"]["annotations"]["example.com/note"] == "n"
    mounts = {mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert {"/v", "/c", "/dev/shm", f"{names.CLAIMS_DIR}/models", names.MODEL_CACHE_DIR} <= mounts
    assert ns.status("rich").resolved is not None
