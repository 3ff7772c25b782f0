"""Jobs beside JobSet and Kueue as their projects released them: controllers, webhooks and all."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from olivine_api.status import FineTuneJobStatus, Phase
from tests.support.cluster import ROOT, Cluster
from tests.support.pods import at_step, hold
from tests.support.trainings import CHECKPOINT_STEPS, put_tiny_model, short_training
from tests.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.full, pytest.mark.timeout(1200)]

NAMESPACE = "addon-tests"
QUEUE = {"kueue.x-k8s.io/queue-name": "team"}
_WITHIN = 300


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster with both add-ons, and a namespace of its own; they go again, so that other tests run without."""
    devcluster("grant", NAMESPACE)
    put_tiny_model(tmp_path_factory.mktemp("tiny-llama"))
    devcluster("start-addons", "jobset,kueue")
    restart_operator()
    cluster = Cluster(NAMESPACE)
    try:
        yield cluster
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true")
        devcluster("stop-addons", "kueue,jobset")
        restart_operator()


def devcluster(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "devcluster", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def restart_operator() -> None:
    """It looks for JobSet and Kueue when it starts."""
    system = Cluster("olivine-system")
    system.kubectl("rollout", "restart", "deployment")
    system.kubectl("rollout", "status", "deployment", "--timeout=120s")


def queued(name: str) -> dict[str, Any]:
    """A short training for Kueue's queue."""
    made = short_training(name, NAMESPACE)
    made["metadata"]["labels"] = QUEUE
    return made


def condition(cluster: Cluster, name: str, kind: str) -> tuple[str, str]:
    """Status and reason of a job's condition."""
    return next(((c.status, c.reason) for c in cluster.status(name).conditions if c.type == kind), ("", ""))


def wait_condition(cluster: Cluster, name: str, kind: str, status: str, seconds: float = 60) -> None:
    wait_for(f"{name}: {kind} is {status}", lambda: condition(cluster, name, kind)[0] == status, seconds=seconds, every=0.5)


def running(cluster: Cluster, name: str) -> list[str]:
    """Pods that are there to stay. (Kueue gives an evicted job's quota to the next one while its pod still saves a checkpoint.)"""
    alive = [pod for pod in cluster.pods(name) if pod["status"]["phase"] in ("Pending", "Running")]
    return [pod["metadata"]["name"] for pod in alive if "deletionTimestamp" not in pod["metadata"]]


def test_two_pods_are_a_jobset_and_survive_the_loss_of_one_with_the_same_bytes(cluster: Cluster) -> None:
    cluster.apply(short_training("calm", NAMESPACE, count=2))
    cluster.apply(short_training("stormy", NAMESPACE, count=2))
    with hold(cluster, "stormy", at_step(CHECKPOINT_STEPS + 10), pods=2) as held:
        child = cluster.status("stormy").child
        assert child is not None
        assert child.kind == "JobSet"
        assert [pod.name.rpartition("-")[0] for pod in held.pods] == [f"{child.name}-trainer-0-{index}" for index in range(2)]
        held.pods[1].kill()

    calm = ended(cluster, "calm")
    stormy = ended(cluster, "stormy")
    assert (calm.restarts, calm.attempt, calm.lost_steps) == (0, 1, 0)
    assert (stormy.restarts, stormy.attempt) == (1, 2)
    assert 0 <= stormy.lost_steps <= held.step - CHECKPOINT_STEPS
    assert [a.digest for a in stormy.artifacts] == [a.digest for a in calm.artifacts]
    assert stormy.metrics == calm.metrics
    cluster.kubectl("delete", "ftj", "stormy", "--wait=true")
    wait_for("no children", lambda: not cluster.get("jobset,job,pod,svc", "-l", "olivine.dev/job=stormy")["items"], seconds=60)


def ended(cluster: Cluster, name: str) -> FineTuneJobStatus:
    """The status of a job that succeeded."""
    status = cluster.wait_ended(name, _WITHIN)
    assert status.phase is Phase.SUCCEEDED, status.last_failure
    return status


@pytest.fixture
def queue(cluster: Cluster) -> Iterator[None]:
    """A queue with room for one training at a time."""
    version = {"apiVersion": "kueue.x-k8s.io/v1beta2"}
    quotas = [{"name": "cpu", "nominalQuota": "300m"}, {"name": "memory", "nominalQuota": "2Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": "any", "resources": quotas}]}
    objects = [
        version | {"kind": "ResourceFlavor", "metadata": {"name": "any"}},
        version
        | {"kind": "ClusterQueue", "metadata": {"name": "tests"}, "spec": {"namespaceSelector": {}, "resourceGroups": [group]}},
        version | {"kind": "LocalQueue", "metadata": {"name": "team", "namespace": NAMESPACE}, "spec": {"clusterQueue": "tests"}},
    ]
    for item in objects:
        cluster.apply(item)
    yield
    cluster.kubectl("delete", "ftj", "-l", "kueue.x-k8s.io/queue-name=team", "--wait=true")
    cluster.kubectl("delete", "localqueue/team", "clusterqueue/tests", "resourceflavor/any")


def test_kueue_lets_one_job_train_at_a_time_and_a_suspended_one_makes_room(cluster: Cluster, queue: None) -> None:
    cluster.apply(queued("first"))
    wait_condition(cluster, "first", "QuotaReserved", "True")
    cluster.apply(queued("second"))
    wait_condition(cluster, "second", "QuotaReserved", "False")
    wait_for("second is Queued", lambda: cluster.status("second").phase is Phase.QUEUED, seconds=30, every=0.5)
    with hold(cluster, "first", at_step(CHECKPOINT_STEPS + 10)):
        assert not running(cluster, "second")
        cluster.kubectl("patch", "ftj", "first", "--type=merge", "-p", '{"spec":{"suspend":true}}')
        marked = "deletionTimestamp"
        wait_for("first is asked to go", lambda: any(marked in p["metadata"] for p in cluster.pods("first")), seconds=60, every=0.5)
    wait_condition(cluster, "second", "QuotaReserved", "True", seconds=120)
    assert not running(cluster, "first")
    cluster.kubectl("patch", "ftj", "first", "--type=merge", "-p", '{"spec":{"suspend":false}}')

    second = ended(cluster, "second")
    first = ended(cluster, "first")
    assert (second.restarts, second.attempt, second.lost_steps) == (0, 1, 0)
    # It was evicted in an orderly way: no incident, nothing lost.
    assert (first.restarts, first.attempt, first.lost_steps) == (0, 2, 0)
    assert [a.digest for a in first.artifacts] == [a.digest for a in second.artifacts]
