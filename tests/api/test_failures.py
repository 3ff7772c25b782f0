"""What goes wrong in pods becomes a reason, a sentence and, where it costs one, a retry."""

import signal

from olivine_api.exit_codes import Category
from olivine_api.status import Phase
from tests.api.jobs import FINAL, Namespace, now
from tests.api.kube import JOBS
from tests.api.operator_process import OperatorProcess
from tests.support.wait import wait_for


def test_what_a_pod_waits_for_is_told(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("wait")
    pod = ns.wait_pod("wait")
    assert "no nodes available" in ns.wait_reason("wait", "Running", "Unschedulable")
    ns.pod_waits(pod, "ErrImagePull", "pull access denied")
    told = ns.wait_reason("wait", "Running", "ImagePullBackOff")
    assert told.startswith("pull access denied; correct spec.pods.image in a new job")
    ns.pod_waits(pod, "CreateContainerConfigError", 'secret "olivine-storage" not found')
    message = ns.wait_reason("wait", "Running", "SecretNotFound")
    assert message == f'secret "olivine-storage" not found in namespace {ns.name}: create it; the pod starts by itself then'
    assert ns.status("wait").phase is Phase.PENDING
    ns.pod_runs(pod)
    ns.wait_phase("wait", Phase.RUNNING)


def test_a_pod_that_cannot_be_made_is_told(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("nobody", pods={"serviceAccountName": "nobody"})
    # A pod that is late is missed after 20 s; the Job controller's own words tell why.
    message = ns.wait_reason("nobody", "Running", "PodNotCreated", seconds=30)
    assert message.startswith("no pod can be made: ")
    assert 'serviceaccount "nobody" not found' in message
    account = {"metadata": {"name": "nobody"}}
    ns.kube.must("POST", f"/api/v1/namespaces/{ns.name}/serviceaccounts", account)


def test_a_users_mistake_ends_the_job_with_the_trainers_sentence(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("typo")
    pod = ns.wait_pod("typo")
    ns.pod_runs(pod)
    sentence = "data.template names {phrse}, but the rows have: phrase, tone"
    ns.pod_ends(pod, 11, {"category": "User", "reason": "ColumnMissing", "message": sentence})
    status = ns.wait_phase("typo", Phase.FAILED)
    assert ns.condition("typo", "Failed") == ("True", "ColumnMissing", sentence)
    assert ns.condition("typo", "Stalled")[0] == "True"
    assert status.last_failure is not None
    assert (status.last_failure.category, status.last_failure.message) == (Category.USER, sentence)
    assert status.restarts == 0
    told = wait_for("the Event", lambda: [e for e in ns.events("typo") if e["reason"] == "ColumnMissing"], seconds=5)
    assert [event["message"] for event in told] == [sentence]
    # The Job controller agrees, and the pod stays for its log.
    wait_for(
        "the Job failed",
        lambda: any(c["type"] == "Failed" for c in ns.wait_job("typo")["status"].get("conditions", ())),
        seconds=15,
    )
    assert len(ns.pods("typo")) == 1


def test_an_incident_is_counted_once_whatever_happens_to_the_operator(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("shaky", retries={"maxRestarts": 1})
    pod = ns.wait_pod("shaky")
    ns.pod_runs(pod)
    ns.wait_phase("shaky", Phase.RUNNING)
    ns.pod_ends(pod, 137, reason="OOMKilled")
    message = ns.wait_reason("shaky", "Running", "Restarting")
    assert "used more memory than its limit" in message
    assert "the next try comes about" in message
    status = ns.status("shaky")
    assert status.restarts == 1
    assert status.next_retry_time is not None
    assert status.last_failure is not None
    assert (status.last_failure.category, status.last_failure.reason) == (Category.INFRASTRUCTURE, "OutOfMemory")

    # An Event follows the status that it tells of.
    wait_for("the Event", lambda: [e for e in ns.events("shaky") if e["reason"] == "Restarting"], seconds=5)
    told = len(ns.events("shaky"))
    version = ns.raw("shaky")["metadata"]["resourceVersion"]
    operator.stop()
    operator.start()
    # The marker: once a later job is served, the earlier ones were looked at.
    ns.apply("marker")
    ns.wait_reason("marker", "Running", "Unschedulable")
    assert ns.raw("shaky")["metadata"]["resourceVersion"] == version
    assert len(ns.events("shaky")) == told

    # The Job controller waits 10 s before it replaces the pod.
    again = ns.wait_pod("shaky", without=(pod["metadata"]["name"],), seconds=30)
    ns.pod_runs(again)
    assert ns.wait_phase("shaky", Phase.RUNNING).next_retry_time is None
    ns.pod_ends(again, 30, {"category": "Infrastructure", "reason": "StorageUnavailable", "message": "the store does not answer"})
    status = ns.wait_phase("shaky", Phase.FAILED)
    assert status.restarts == 2
    kind, reason, message = ns.condition("shaky", "Failed")
    assert (kind, reason) == ("True", "TooManyRestarts")
    assert message.endswith("the store does not answer")
    wait_for("the Job is suspended", lambda: ns.wait_job("shaky")["spec"]["suspend"], seconds=10)


def test_an_interrupted_or_evicted_pod_costs_no_retry(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("moved")
    pod = ns.wait_pod("moved")
    ns.pod_runs(pod)
    ns.wait_phase("moved", Phase.RUNNING)
    told = {"category": "Infrastructure", "reason": "Interrupted", "message": "interrupted at step 4; checkpoint saved"}
    ns.pod_ends(pod, 40, told)
    assert ns.wait_reason("moved", "Running", "Restarting").startswith("interrupted at step 4")
    ns.apply("drained")
    pod = ns.wait_pod("drained")
    ns.pod_runs(pod)
    ns.wait_phase("drained", Phase.RUNNING)
    disrupted = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastTransitionTime": now(),
    }
    ns.pod_ends(pod, 143, conditions=(disrupted,))
    assert "was removed from its node" in ns.wait_reason("drained", "Running", "Restarting")
    assert (ns.status("moved").restarts, ns.status("drained").restarts) == (0, 0)
    assert all(not job["spec"]["suspend"] for name in ("moved", "drained") for job in ns.children(JOBS, name))


def test_an_operator_that_was_killed_catches_up(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("alone")
    pod = ns.wait_pod("alone")
    ns.pod_runs(pod)
    ns.wait_phase("alone", Phase.RUNNING)
    # An Event follows the status that it tells of.
    wait_for("the Event", lambda: [e for e in ns.events("alone") if e["reason"] == "PodRunning"], seconds=5)
    operator.stop(signal.SIGKILL)
    ns.pod_ends(pod, 0, {"reason": "Completed", "message": "done", "snapshot": FINAL})
    wait_for(
        "the Job is complete",
        lambda: any(c["type"] == "Complete" for c in ns.wait_job("alone")["status"].get("conditions", ())),
        seconds=15,
    )
    operator.start()
    status = ns.wait_phase("alone", Phase.SUCCEEDED)
    assert status.metrics["accuracy"] == 0.94
    assert status.artifacts
    assert [e["reason"] for e in ns.events("alone")].count("PodRunning") == 1
