"""Deadlines, what is kept after the end, memory, quota, claims and lost nodes, against the real controllers."""

import json
from pathlib import Path

import pytest

from olivine_api import names
from olivine_api.status import Phase
from tests.api.jobs import Namespace, now, snapshot, words
from tests.api.kube import CONFIG_MAPS, EVENTS, FTJ, JOBS, PODS
from tests.api.operator_process import OperatorProcess
from tests.support.wait import wait_for


def test_a_job_that_runs_for_too_long_ends_and_its_pods_go(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("long", activeDeadlineSeconds=3)
    assert "activeDeadlineSeconds" not in ns.wait_job("long")["spec"]
    ns.pod_runs(ns.wait_pod("long"))
    ns.wait_phase("long", Phase.RUNNING)
    message = ns.wait_reason("long", "Failed", "DeadlineExceeded")
    assert "spec.activeDeadlineSeconds is 3" in message
    wait_for("no pods", lambda: not ns.pods("long"), seconds=15)
    assert ns.wait_job("long")["spec"]["suspend"] is True


def test_a_job_whose_pod_does_not_come_in_time_ends(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("never", queueDeadlineSeconds=3)
    ns.wait_pod("never")
    ns.wait_reason("never", "Failed", "QueueDeadlineExceeded")
    wait_for("no pods", lambda: not ns.pods("never"), seconds=15)


def test_when_its_time_is_over_the_jobs_children_go_and_it_stays_and_is_never_started_again(
    ns: Namespace, operator: OperatorProcess
) -> None:
    ns.apply("kept", ttlSecondsAfterFinished=2)
    pod = ns.wait_pod("kept")
    ns.pod_runs(pod)
    ns.wait_phase("kept", Phase.RUNNING)
    ns.pod_ends(pod, 0, {"reason": "Completed", "message": "done", "snapshot": snapshot("Publishing", 10)})
    ns.wait_phase("kept", Phase.SUCCEEDED)
    assert ns.children(JOBS, "kept")
    wait_for("no Job", lambda: not ns.children(JOBS, "kept") and not ns.children(PODS, "kept"), seconds=20)
    # Other hands take the rest; a later job is served, by a new operator: the ended one is left alone.
    ns.kube.must("DELETE", f"{ns.path(CONFIG_MAPS)}?labelSelector={names.LABEL_JOB}%3Dkept")
    operator.stop()
    operator.start()
    ns.apply("marker")
    ns.wait_pod("marker")
    assert ns.status("kept").phase is Phase.SUCCEEDED
    assert not ns.children(JOBS, "kept")


def test_a_pod_that_ran_out_of_memory_is_followed_by_one_with_half_the_micro_batch(
    ns: Namespace, operator: OperatorProcess
) -> None:
    ns.apply(
        "heavy",
        training={"maxSteps": 10, "batchSize": 2, "gradientAccumulationSteps": 3},
        pods={"resources": {"limits": {"memory": "2Gi"}}},
    )
    pod = ns.wait_pod("heavy")
    ns.pod_runs(pod)
    ns.wait_phase("heavy", Phase.RUNNING)
    ns.pod_ends(pod, 137, reason="OOMKilled")
    message = ns.wait_reason("heavy", "Running", "Restarting")
    assert "batchSize 1 x gradientAccumulationSteps 6, the same effective batch" in message
    # Long before the next pod comes.
    wait_for("the overrides", lambda: names.CONFIG_OVERRIDES in ns.config_maps("heavy")[0]["data"], seconds=5)
    overrides = json.loads(ns.config_maps("heavy")[0]["data"][names.CONFIG_OVERRIDES])
    assert overrides == {"batchSize": 1, "gradientAccumulationSteps": 6}
    again = ns.wait_pod("heavy", without=(pod["metadata"]["name"],), seconds=30)
    ns.pod_runs(again)
    ns.wait_phase("heavy", Phase.RUNNING)
    last = words("OutOfMemory", "no memory", attempt=2, snapshot=snapshot("Training", 1, attempt=2, peakMemoryBytes=2**31))
    ns.pod_ends(again, 20, last)
    message = ns.wait_reason("heavy", "Failed", "OutOfMemory")
    assert "up to 2048 MiB, and the pod's limit is 2Gi" in message
    wait_for("the Job is suspended", lambda: ns.wait_job("heavy")["spec"]["suspend"], seconds=10)


@pytest.mark.full
def test_a_pod_that_a_quota_refuses_is_told_within_half_a_minute(ns: Namespace, operator: OperatorProcess) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    ns.kube.must("POST", f"/api/v1/namespaces/{ns.name}/resourcequotas", quota)
    path = f"/api/v1/namespaces/{ns.name}/resourcequotas/none"
    wait_for("the quota counts", lambda: "hard" in ns.kube.must("GET", path).get("status", {}), seconds=20)
    ns.apply("much")
    message = ns.wait_reason("much", "Running", "QuotaExceeded", seconds=30)
    assert "exceeded quota: none" in message
    assert ns.status("much").phase is Phase.PENDING
    ns.kube.must("DELETE", path)
    # The Job controller tries again by itself.
    ns.wait_pod("much", seconds=60)
    ns.wait_reason("much", "Running", "Unschedulable", seconds=20)


def test_a_claim_that_is_missing_or_not_bound_is_named(ns: Namespace, operator: OperatorProcess) -> None:
    node = f"node-of-{ns.name}"
    ns.make_node(node)
    ns.apply("lacks", pods=ns.on_node, model={"uri": "pvc://models/tiny"})
    message = ns.wait_reason("lacks", "Running", "ClaimNotFound", seconds=30)
    assert message == f'PersistentVolumeClaim "models" not found in namespace {ns.name}: create it; the pod starts by itself then'
    claim = {
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}},
    }
    ns.kube.must("POST", f"/api/v1/namespaces/{ns.name}/persistentvolumeclaims", claim)
    ns.wait_reason("lacks", "Running", "ClaimNotBound", seconds=30)
    ns.kube.must("DELETE", f"/api/v1/nodes/{node}")


@pytest.mark.full
def test_a_volume_that_cannot_be_mounted_is_told_in_kubelets_words(ns: Namespace, operator: OperatorProcess) -> None:
    node = f"node-of-{ns.name}"
    ns.make_node(node)
    volumes = [{"name": "certs", "secret": {"secretName": "certs"}}]
    ns.apply("bare", pods={**ns.on_node, "volumes": volumes})
    pod = ns.wait_pod("bare")
    wait_for("the pod is bound", lambda: ns.pods("bare")[0]["spec"].get("nodeName") == node, seconds=10)
    ns.pod_waits(pod, "ContainerCreating", "")
    text = 'MountVolume.SetUp failed for volume "certs" : secret "certs" not found'
    name = pod["metadata"]["name"]
    event = {
        "metadata": {"name": f"{name}.1"},
        "involvedObject": {"kind": "Pod", "namespace": ns.name, "name": name, "uid": pod["metadata"]["uid"]},
        "type": "Warning",
        "reason": "FailedMount",
        "message": text,
        "lastTimestamp": now(),
        "source": {"component": "kubelet"},
    }
    ns.kube.must("POST", ns.path(EVENTS), event)
    assert ns.wait_reason("bare", "Running", "FailedMount", seconds=30) == f"pod {name} cannot be set up: {text}"
    ns.pod_runs(pod)
    ns.wait_phase("bare", Phase.RUNNING)
    ns.kube.must("DELETE", f"/api/v1/nodes/{node}")


def test_a_pod_on_a_lost_node_is_removed_and_replaced_at_no_cost(ns: Namespace, operator: OperatorProcess) -> None:
    node = f"node-of-{ns.name}"
    ns.make_node(node)
    ns.apply("lost", pods={**ns.on_node, "terminationGracePeriodSeconds": 1})
    pod = ns.wait_pod("lost")
    name = pod["metadata"]["name"]
    wait_for("the pod is bound", lambda: ns.pods("lost")[0]["spec"].get("nodeName") == node, seconds=10)
    ns.pod_runs(pod)
    ns.wait_phase("lost", Phase.RUNNING)
    # As the node controller does it; no kubelet answers.
    ns.kube.must("DELETE", ns.path(PODS, name))
    again = ns.wait_pod("lost", without=(name,), seconds=40)
    assert again["metadata"]["name"] != name
    wait_for("the lost one is gone", lambda: name not in [p["metadata"]["name"] for p in ns.pods("lost")], seconds=15)
    told = {event["reason"]: event["message"] for event in ns.events("lost")}
    assert f"node {node} does not answer, and pod {name} did not go from it" in told["NodeLost"]
    assert ns.status("lost").restarts == 0
    ns.kube.must("DELETE", f"/api/v1/nodes/{node}")


@pytest.mark.full  # more than a minute of waiting
def test_a_pod_on_a_lost_node_is_told_with_the_way_out_where_it_may_not_be_removed(
    ns: Namespace, operator: OperatorProcess, tmp_path: Path
) -> None:
    """The chart's default."""
    operator.stop()
    careful = OperatorProcess(operator.kubeconfig, tmp_path, operator.settings | {"removeLostPods": False})
    careful.start()
    node = f"node-of-{ns.name}"
    ns.make_node(node)
    ns.apply("silent", pods={**ns.on_node, "terminationGracePeriodSeconds": 1})
    pod = ns.wait_pod("silent")
    name = pod["metadata"]["name"]
    wait_for("the pod is bound", lambda: ns.pods("silent")[0]["spec"].get("nodeName") == node, seconds=10)
    ns.pod_runs(pod)
    ns.wait_phase("silent", Phase.RUNNING)
    ns.kube.must("DELETE", ns.path(PODS, name))
    message = ns.wait_reason("silent", "Running", "NodeLost", seconds=20)
    assert f"node {node} does not answer, and pod {name} did not go" in message
    assert f"kubectl delete node {node}" in message
    assert [pod["metadata"]["name"] for pod in ns.pods("silent")] == [name]
    # The way out.
    ns.kube.must("DELETE", f"/api/v1/nodes/{node}")
    ns.kube.must("DELETE", ns.path(PODS, name), {"gracePeriodSeconds": 0})
    # The controllers take a minute or more: the pod is garbage first, then its index backs off.
    ns.wait_pod("silent", without=(name,), seconds=120)
    assert ns.status("silent").restarts == 0
    assert careful.stop() == 0
    operator.start()


def test_deadlines_and_what_is_kept_may_change_while_the_job_lives(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("soft", activeDeadlineSeconds=600)
    ns.pod_runs(ns.wait_pod("soft"))
    ns.wait_phase("soft", Phase.RUNNING)
    ns.change("soft", activeDeadlineSeconds=1, ttlSecondsAfterFinished=0)
    ns.wait_reason("soft", "Failed", "DeadlineExceeded")
    wait_for("no Job", lambda: not ns.children(JOBS, "soft"), seconds=15)
    assert ns.kube.request("GET", ns.path(FTJ, "soft")).ok
