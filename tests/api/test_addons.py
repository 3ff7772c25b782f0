"""With JobSet's and Kueue's own CRDs on a real API server; a hand plays their controllers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olivine_api.status import Phase
from tests.api import addons
from tests.api.jobs import FINAL, Namespace, now
from tests.api.kube import FTJ, JOBS, JOBSETS, SERVICES, WORKLOADS, Json, Kube
from tests.api.operator_process import OperatorProcess
from tests.support.wait import wait_for

QUEUE = {"kueue.x-k8s.io/queue-name": "team"}


@pytest.fixture(scope="module", autouse=True)
def installed(kube: Kube, operator: OperatorProcess) -> Iterator[None]:
    operator.stop()
    for addon in (addons.JOBSET, addons.KUEUE):
        addons.install(kube, addon)
    operator.start()
    yield
    operator.stop()
    for addon in (addons.JOBSET, addons.KUEUE):
        addons.uninstall(kube, addon)
    operator.start()


def owned_by(owner: Json) -> list[Json]:
    return [{
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }]  # fmt: skip


def wait_jobset(ns: Namespace, name: str) -> Json:
    return wait_for(f"the JobSet of {name}", lambda: next(iter(ns.children(JOBSETS, name)), None), seconds=15)


def play_jobset(ns: Namespace, jobset: Json) -> None:
    """What the JobSet controller makes of it."""
    (replicated,) = jobset["spec"]["replicatedJobs"]
    template = replicated["template"]
    metadata = {
        "name": f"{jobset['metadata']['name']}-{replicated['name']}-0",
        "labels": template["metadata"]["labels"],
        "ownerReferences": owned_by(jobset),
    }
    body = {"metadata": metadata, "spec": {**template["spec"], "suspend": jobset["spec"].get("suspend", False)}}
    ns.kube.must("POST", ns.path(JOBS), body)


def set_conditions(ns: Namespace, path: str, name: str, *conditions: tuple[str, str, str, str]) -> None:
    items = [
        {"type": kind, "status": truth, "reason": reason, "message": message, "lastTransitionTime": now()}
        for kind, truth, reason, message in conditions
    ]
    ns.kube.merge(ns.path(path, name, "status"), {"status": {"conditions": items}})


def test_several_pods_are_a_jobset_where_there_are_jobsets(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("team", pods={"count": 2})
    jobset = wait_jobset(ns, "team")
    child = jobset["metadata"]["name"]
    assert not ns.children(JOBS, "team")
    assert not ns.children(SERVICES, "team")
    assert ns.status("team").child is not None
    assert ns.raw("team")["status"]["child"]["kind"] == "JobSet"
    play_jobset(ns, jobset)
    first, second = ns.wait_pods("team", 2)
    assert first["spec"]["hostname"] == f"{child}-trainer-0-0"
    ns.pod_runs(first)
    ns.pod_runs(second)
    ns.wait_phase("team", Phase.RUNNING)
    # An incident is the same as of a Job.
    ns.pod_ends(second, 137)
    ns.wait_reason("team", "Running", "Restarting")
    again = ns.wait_pods("team", 1, without=tuple(pod["metadata"]["name"] for pod in (first, second)), seconds=30)
    ns.pod_runs(again[0])
    ns.wait_phase("team", Phase.RUNNING)
    ns.pod_ends(first, 0, {"reason": "Completed", "message": "done", "snapshot": FINAL})
    set_conditions(ns, JOBSETS, child, ("Completed", "True", "AllJobsCompleted", "jobset completed successfully"))
    status = ns.wait_phase("team", Phase.SUCCEEDED)
    assert (status.restarts, status.metrics["accuracy"]) == (1, 0.94)


def test_a_jobset_is_suspended_and_made_anew_for_another_size(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("pause", pods={"count": 2})
    jobset = wait_jobset(ns, "pause")
    ns.change("pause", suspend=True)
    wait_for("it is suspended", lambda: wait_jobset(ns, "pause")["spec"]["suspend"], seconds=15)
    set_conditions(ns, JOBSETS, jobset["metadata"]["name"], ("Suspended", "True", "SuspendedJobs", "jobset is suspended"))
    ns.wait_phase("pause", Phase.SUSPENDED)
    ns.change("pause", pods={"count": 3})
    wait_for("the old one goes", lambda: not ns.children(JOBSETS, "pause"), seconds=15)
    ns.change("pause", suspend=False)
    other = wait_jobset(ns, "pause")
    assert other["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 3
    assert ns.status("pause").restarts == 0


def test_a_users_mistake_ends_a_jobset_too_and_a_cancelled_one_is_deleted(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("wrong", pods={"count": 2})
    play_jobset(ns, wait_jobset(ns, "wrong"))
    first, _ = ns.wait_pods("wrong", 2)
    ns.pod_runs(first)
    ns.pod_ends(first, 11, {"category": "User", "reason": "DataEmpty", "message": "no rows"})
    assert ns.wait_reason("wrong", "Failed", "DataEmpty") == "no rows"
    ns.apply("off", pods={"count": 2})
    wait_jobset(ns, "off")
    ns.change("off", cancel=True)
    ns.wait_reason("off", "Failed", "Cancelled")
    wait_for("no JobSet", lambda: not ns.children(JOBSETS, "off"), seconds=15)


def queued(ns: Namespace, name: str, **spec: Any) -> Json:
    """Applies a job in a queue; its Job as Kueue finds it."""
    body = {**ns.manifest(name, **spec)}
    body["metadata"]["labels"] = QUEUE
    answer = ns.kube.apply(ns.path(FTJ), body)
    assert answer.ok, answer.message
    job = ns.wait_job(name)
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    return job


def make_workload(ns: Namespace, job: Json) -> str:
    """What Kueue makes for it."""
    name = f"job-{job['metadata']['name']}-abcde"
    metadata = {
        "name": name,
        "labels": {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]},
        "ownerReferences": owned_by(job | {"apiVersion": "batch/v1", "kind": "Job"}),
    }
    container = {"name": "trainer", "image": "trainer"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    pods = [{"name": "main", "count": job["spec"]["parallelism"], "template": template}]
    body = {
        "apiVersion": "kueue.x-k8s.io/v1beta2",
        "kind": "Workload",
        "metadata": metadata,
        "spec": {"queueName": "team", "podSets": pods},
    }
    ns.kube.must("POST", ns.path(WORKLOADS), body)
    set_conditions(ns, WORKLOADS, name, ("QuotaReserved", "False", "Pending", "couldn't assign flavors: no cpu"))
    return name


def admit(ns: Namespace, job: Json, workload: str, **size: int) -> None:
    set_conditions(ns, WORKLOADS, workload, ("QuotaReserved", "True", "QuotaReserved", "reserved"))
    ns.kube.merge(ns.path(JOBS, job["metadata"]["name"]), {"spec": {"suspend": False, **size}})


def test_a_queued_job_waits_for_kueue_and_its_users_suspend_is_the_workloads(ns: Namespace, operator: OperatorProcess) -> None:
    job = queued(ns, "line")
    assert ns.wait_phase("line", Phase.QUEUED)
    workload = make_workload(ns, job)
    wait_for("what Kueue waits for", lambda: "no cpu" in ns.condition("line", "QuotaReserved")[2], seconds=15)
    admit(ns, job, workload)
    ns.pod_runs(ns.wait_pod("line"))
    ns.wait_phase("line", Phase.RUNNING)
    assert ns.condition("line", "QuotaReserved")[0] == "True"

    ns.change("line", suspend=True)
    path = ns.path(WORKLOADS, workload)
    wait_for("the Workload is not active", lambda: ns.kube.must("GET", path)["spec"].get("active") is False, seconds=15)
    # The Job is Kueue's to suspend.
    assert ns.wait_job("line")["spec"]["suspend"] is False
    ns.kube.merge(ns.path(JOBS, job["metadata"]["name"]), {"spec": {"suspend": True}})
    set_conditions(ns, WORKLOADS, workload, ("QuotaReserved", "False", "Inactive", "The workload is deactivated"))
    ns.wait_phase("line", Phase.SUSPENDED)
    ns.change("line", suspend=False)
    wait_for("the Workload is active", lambda: ns.kube.must("GET", path)["spec"].get("active", True), seconds=15)
    ns.wait_phase("line", Phase.QUEUED)
    assert ns.status("line").restarts == 0


def test_fewer_pods_that_kueue_admits_are_the_world(ns: Namespace, operator: OperatorProcess) -> None:
    """Partial admission of a plain Job: the operator sees the child's parallelism, never the spec's."""
    job = queued(ns, "part")
    workload = make_workload(ns, job)
    admit(ns, job, workload, completions=1, parallelism=1)
    ns.wait_pod("part")
    assert '"pods": 1' in ns.config_maps("part")[0]["data"]["world.json"]


def test_a_queued_job_that_runs_for_too_long_leaves_the_queue(ns: Namespace, operator: OperatorProcess) -> None:
    """Not suspended: Kueue would let it run again."""
    job = queued(ns, "long", activeDeadlineSeconds=3)
    admit(ns, job, make_workload(ns, job))
    ns.pod_runs(ns.wait_pod("long"))
    ns.wait_phase("long", Phase.RUNNING)
    assert "spec.activeDeadlineSeconds is 3" in ns.wait_reason("long", "Failed", "DeadlineExceeded")
    wait_for("no Job", lambda: not ns.children(JOBS, "long"), seconds=15)


def test_a_job_that_kueue_manages_without_a_label_is_left_to_it(ns: Namespace, operator: OperatorProcess) -> None:
    """Kueue's manageJobsWithoutQueueName: two controllers would suspend and resume it by turns."""
    ns.apply("taken")
    job = ns.wait_job("taken")
    make_workload(ns, job)
    wait_for("what Kueue waits for", lambda: "no cpu" in ns.condition("taken", "QuotaReserved")[2], seconds=15)
    path = ns.path(JOBS, job["metadata"]["name"])
    ns.kube.merge(path, {"spec": {"suspend": True}})
    ns.wait_phase("taken", Phase.QUEUED)
    assert ns.kube.must("GET", path)["spec"]["suspend"] is True
    wait_for("no pod of the suspended Job", lambda: not ns.pods("taken"), seconds=15)
    ns.kube.merge(path, {"spec": {"suspend": False}})
    ns.pod_runs(ns.wait_pod("taken"))
    ns.wait_phase("taken", Phase.RUNNING)


def test_a_queued_job_that_waits_for_too_long_leaves_the_queue(ns: Namespace, operator: OperatorProcess) -> None:
    make_workload(ns, queued(ns, "late", queueDeadlineSeconds=3))
    ns.wait_reason("late", "Failed", "QueueDeadlineExceeded")
    wait_for("no Job", lambda: not ns.children(JOBS, "late"), seconds=15)


def test_a_kind_that_is_taken_out_of_the_cluster_ends_the_operator_and_the_next_one_does_without(
    ns: Namespace, kube: Kube, operator: OperatorProcess, tmp_path: Path
) -> None:
    operator.stop()
    first = OperatorProcess(operator.kubeconfig, tmp_path, operator.settings)
    first.start()
    ns.apply("team", pods={"count": 2})
    wait_jobset(ns, "team")
    addons.uninstall(kube, addons.JOBSET)
    assert first.wait(seconds=30) == 1
    assert "the cluster lacks a kind that was watched: only a new start can do without it" in first.log.read_text()
    operator.start()
    assert len(ns.wait_pods("team", 2)) == 2
    assert ns.raw("team")["status"]["child"]["kind"] == "Job"
    assert ns.status("team").restarts == 0
    addons.install(kube, addons.JOBSET)
