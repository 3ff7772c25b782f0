"""The life of a FineTuneJob against a real API server: what is made, written and told, and what is not."""

import json

from olivine_api import names
from olivine_api.exit_codes import Category
from olivine_api.status import Phase
from tests.api.jobs import FINAL, Namespace, now, snapshot, words
from tests.api.kube import CONFIG_MAPS, FTJ, JOBS, PODS
from tests.api.operator_process import OperatorProcess, pod_token
from tests.support.wait import wait_for


def test_applied_it_gets_a_config_map_and_an_indexed_job(ns: Namespace, operator: OperatorProcess) -> None:
    applied = ns.apply("first", storage={"uri": "s3://olivine/runs", "secretRef": {"name": "store"}})
    uid = applied["metadata"]["uid"]
    job = ns.wait_job("first")
    assert job["metadata"]["name"] == f"first-{uid[:6]}"
    assert job["metadata"]["ownerReferences"][0]["uid"] == uid
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["backoffLimitPerIndex"]) == ("Indexed", 1, 2147483647)
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["successPolicy"]["rules"][0]["succeededIndexes"] == "0"
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob", "Ignore", "Ignore"]
    assert spec["template"]["spec"]["containers"][0]["envFrom"] == [{"prefix": "OLIVINE_STORAGE_", "secretRef": {"name": "store"}}]

    data = ns.config_maps("first")[0]["data"]
    assert json.loads(data[names.CONFIG_SPEC])["training"]["batchSize"] == 8  # a default
    assert json.loads(data[names.CONFIG_IDENTITY]) == {
        "namespace": ns.name,
        "name": "first",
        "uid": uid,
        "child": job["metadata"]["name"],
    }
    assert "BEGIN CERTIFICATE" in data[names.CONFIG_CA]
    # The namespace enforces `restricted`: a pod that is there has met it.
    ns.wait_pod("first")
    status = ns.status("first")
    assert status.phase is Phase.PENDING
    assert ns.condition("first", "Validated")[0] == "True"
    assert ns.condition("first", "Reconciling")[0] == "True"


def test_applied_twice_nothing_is_written(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("calm")
    ns.wait_reason("calm", "Running", "Unschedulable")
    version = ns.raw("calm")["metadata"]["resourceVersion"]
    before = operator.requests()
    ns.apply("calm")
    ns.apply("other")  # by the time that this one is served, the first one would have been
    ns.wait_reason("other", "Running", "Unschedulable")
    assert ns.raw("calm")["metadata"]["resourceVersion"] == version
    after = operator.requests()
    assert after["POST", "Job"] - before["POST", "Job"] == 1


def test_an_undisturbed_life_costs_few_writes_and_no_reads(ns: Namespace, operator: OperatorProcess) -> None:
    # A node takes its pod, so that not even the scheduler has anything to say; nothing else may run there.
    node = f"node-of-{ns.name}"
    ns.make_node(node)

    before = operator.requests()
    ns.apply("life", pods=ns.on_node)
    pod = ns.wait_pod("life")
    wait_for("the pod is bound", lambda: ns.pods("life")[0]["spec"].get("nodeName") == node, seconds=10)
    ns.pod_runs(pod)
    ns.wait_phase("life", Phase.RUNNING)
    token, ca = pod_token(ns.kube, pod), ns.config_maps("life")[0]["data"][names.CONFIG_CA]
    assert operator.post(ns.name, "life", snapshot("EvaluatingBase"), token=token, ca=ca)[0] == 204
    wait_for("the stage", lambda: (p := ns.status("life").progress) and p.stage == "EvaluatingBase", seconds=5)
    report = snapshot("Training", 5, baseline={"accuracy": 0.02}, metrics={"trainLoss": 1.5})
    assert operator.post(ns.name, "life", report, token=token, ca=ca)[0] == 204
    wait_for("progress", lambda: (p := ns.status("life").progress) and p.step == 5, seconds=5)
    ns.pod_ends(pod, 0, {"reason": "Completed", "message": "done", "snapshot": FINAL})
    status = ns.wait_phase("life", Phase.SUCCEEDED)

    assert status.metrics["accuracy"] == 0.94
    assert status.baseline["accuracy"] == 0.02
    assert status.artifacts[0].digest == "sha256:abc"
    assert ns.condition("life", "Evaluated")[2].startswith("accuracy 0.02 (base) -> 0.94 (tuned)")
    assert {c.type for c in status.conditions if c.status == "True"} == {"Validated", "Evaluated", "Published", "Complete"}
    # Events follow the status that they tell of.
    wait_for("the last Event", lambda: [e for e in ns.events("life") if e["reason"] == "Completed"], seconds=5)
    # A request is there before its answer is counted.
    posted = before.get(("POST", "Event"), 0) + 6
    wait_for("the count of it", lambda: operator.requests().get(("POST", "Event"), 0) >= posted, seconds=5)
    after = operator.requests()
    spent = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    events = [event["reason"] for event in ns.events("life")]
    assert sorted(events) == sorted(["Accepted", "PodRunning", "BaseEvaluated", "Evaluated", "Published", "Completed"])
    # Status: accepted with the child, running, the end; and two of progress.
    assert spent == {
        ("POST", "ConfigMap"): 1,
        ("POST", "Job"): 1,
        ("PATCH", "FineTuneJob"): 3 + 2,
        ("POST", "Event"): 6,
        ("POST", "TokenReview"): 1,
    }
    ns.kube.must("DELETE", f"/api/v1/nodes/{node}")


def test_the_spec_is_fixed_once_the_child_exists(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("fixed")
    ns.wait_job("fixed")
    answer = ns.kube.request(
        "PATCH", ns.path(FTJ, "fixed"), {"spec": {"training": {"maxSteps": 11}}}, "application/merge-patch+json"
    )
    assert answer.code == 422
    assert "the spec is fixed once its training child exists" in answer.message
    assert "kubectl replace --force" in answer.message
    ns.change("fixed", retries={"maxRestarts": 3})


def test_suspended_from_the_start_there_is_no_child_until_it_resumes(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("later", suspend=True)
    ns.wait_phase("later", Phase.SUSPENDED)
    assert not ns.children(JOBS, "later")
    assert not ns.children(CONFIG_MAPS, "later")
    ns.change("later", training={"maxSteps": 20})  # nothing is fixed yet
    ns.change("later", suspend=False)
    ns.wait_job("later")
    assert json.loads(ns.config_maps("later")[0]["data"][names.CONFIG_SPEC])["training"]["maxSteps"] == 20


def test_suspended_its_pods_go_and_resumed_they_come_again_and_no_retry_is_spent(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("pause")
    pod = ns.wait_pod("pause")
    ns.pod_runs(pod)
    ns.wait_phase("pause", Phase.RUNNING)
    ns.change("pause", suspend=True)
    ns.wait_phase("pause", Phase.SUSPENDED)
    wait_for("no pods", lambda: not ns.pods("pause"), seconds=10)
    ns.wait_reason("pause", "Running", "SuspendedByUser")
    ns.change("pause", suspend=False)
    again = ns.wait_pod("pause")
    ns.pod_runs(again)
    status = ns.wait_phase("pause", Phase.RUNNING)
    assert status.restarts == 0
    assert ns.condition("pause", "Suspended")[0] == "False"


def test_cancelled_its_job_is_deleted_and_it_stays_failed(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("off")
    ns.wait_pod("off")
    ns.change("off", cancel=True)
    ns.wait_reason("off", "Failed", "Cancelled")
    wait_for("no Job", lambda: not ns.children(JOBS, "off"), seconds=10)
    answer = ns.kube.request("PATCH", ns.path(FTJ, "off"), {"spec": {"cancel": False}}, "application/merge-patch+json")
    assert "cancel is final" in answer.message
    assert ns.status("off").phase is Phase.FAILED
    assert not ns.children(JOBS, "off")


def test_what_a_cancelled_jobs_pod_says_last_is_taken_over(ns: Namespace, operator: OperatorProcess) -> None:
    """It saves a checkpoint before it goes; the one that status told of may be pruned by then."""
    node = f"node-of-{ns.name}"
    ns.make_node(node)
    ns.apply("last", pods=ns.on_node)
    pod = ns.wait_pod("last")
    wait_for("the pod is bound", lambda: ns.pods("last")[0]["spec"].get("nodeName") == node, seconds=10)
    ns.pod_runs(pod)
    ns.wait_phase("last", Phase.RUNNING)
    ns.change("last", cancel=True)
    ns.wait_reason("last", "Failed", "Cancelled")
    path = ns.path(PODS, pod["metadata"]["name"])
    wait_for("its pod is asked to go", lambda: "deletionTimestamp" in ns.kube.must("GET", path)["metadata"], seconds=60)
    assert not ns.children(JOBS, "last")
    saved = {"uri": "s3://olivine/runs/x/checkpoints/step-00000007-a0001", "step": 7, "digest": "d", "savedAt": now()}
    ns.pod_ends(pod, 40, words("Interrupted", step=7, snapshot=snapshot("Training", 7, checkpoint=saved)))
    # As kubelet does it.
    ns.kube.must("DELETE", path, {"gracePeriodSeconds": 0})
    wait_for("the checkpoint", lambda: ns.status("last").checkpoint is not None, seconds=10)
    status = ns.status("last")
    assert status.checkpoint is not None
    assert (status.checkpoint.step, status.phase, status.restarts) == (7, Phase.FAILED, 0)
    ns.kube.must("DELETE", f"/api/v1/nodes/{node}")


def test_a_suspended_job_is_cancelled_by_the_same_patch(ns: Namespace, operator: OperatorProcess) -> None:
    """The documented line was refused: suspend and cancel excluded each other."""
    ns.apply("paused", suspend=True)
    ns.wait_phase("paused", Phase.SUSPENDED)
    ns.change("paused", cancel=True)
    ns.wait_reason("paused", "Failed", "Cancelled")
    assert ns.status("paused").phase is Phase.FAILED
    assert not ns.children(JOBS, "paused")


def test_deleted_its_children_are_collected(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("gone")
    ns.wait_pod("gone")
    ns.kube.must("DELETE", ns.path(FTJ, "gone"))
    # The garbage collector of a young control plane learns of a new kind of owner after half a minute.
    wait_for("no children", lambda: not any(ns.children(kind, "gone") for kind in (JOBS, PODS, CONFIG_MAPS)), seconds=60)


def test_a_pod_of_somebody_elses_with_our_labels_keeps_the_operator_from_nothing(ns: Namespace, operator: OperatorProcess) -> None:
    """Anybody who may create pods may write any labels: an index that is no number kept every new operator from starting."""
    labels = {names.LABEL_JOB: "odd", "batch.kubernetes.io/job-completion-index": "first"}
    container = {
        "name": "c",
        "image": "i",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    body = {"metadata": {"name": "theirs", "labels": labels}, "spec": {"containers": [container], "securityContext": security}}
    ns.kube.must("POST", ns.path(PODS), body)
    operator.stop()
    operator.start()
    ns.apply("odd")
    assert ns.wait_job("odd")["metadata"]["name"] != "theirs"


def test_a_job_with_the_childs_name_is_not_adopted_but_waited_for(ns: Namespace, operator: OperatorProcess) -> None:
    uid = ns.apply("mine", suspend=True)["metadata"]["uid"]
    name = f"mine-{uid[:6]}"
    container = {"name": "c", "image": "i"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    foreign = {"metadata": {"name": name, "labels": {names.LABEL_JOB: "mine"}}, "spec": {"suspend": True, "template": template}}
    ns.kube.must("POST", ns.path(JOBS), foreign)
    ns.change("mine", suspend=False)
    message = ns.wait_reason("mine", "Running", "NameTaken")
    assert f"the Job {name} belongs to something else" in message
    assert ns.kube.must("GET", ns.path(JOBS, name))["spec"]["template"]["spec"]["containers"][0]["image"] == "i"
    ns.kube.must("DELETE", f"{ns.path(JOBS, name)}?propagationPolicy=Background")
    ns.wait_pod("mine", seconds=30)


def test_a_job_deleted_by_other_hands_is_made_again(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("lost")
    ns.pod_runs(ns.wait_pod("lost"))
    ns.wait_phase("lost", Phase.RUNNING)
    first = ns.wait_job("lost")
    ns.kube.must("DELETE", f"{ns.path(JOBS, first['metadata']['name'])}?propagationPolicy=Background")
    wait_for(
        "another Job", lambda: any(j["metadata"]["uid"] != first["metadata"]["uid"] for j in ns.children(JOBS, "lost")), seconds=15
    )
    ns.wait_pod("lost")
    status = ns.status("lost")
    assert status.restarts == 1
    assert status.last_failure is not None
    assert (status.last_failure.category, status.last_failure.reason) == (Category.INFRASTRUCTURE, "ChildLost")


def test_a_file_uri_is_refused_where_the_policy_says_so(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("local", model={"uri": "file:///models/tiny"})
    status = ns.wait_phase("local", Phase.FAILED)
    assert ns.condition("local", "Validated")[:2] == ("False", "FileUriNotAllowed")
    assert status.last_failure is not None
    assert status.last_failure.category is Category.USER
    assert not ns.children(JOBS, "local")


def test_what_the_api_server_refuses_in_the_job_is_told(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("odd", pods={"resources": {"limits": {"cpu": "plenty"}}})
    ns.wait_phase("odd", Phase.FAILED)
    assert "plenty" in ns.condition("odd", "Failed")[2] or "quantit" in ns.condition("odd", "Failed")[2]
