"""From the previous release by the real helm, with a job that the old operator had running, in a cluster of its own."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.clients import clients
from devcluster.controlplane import ControlPlane
from olivine_api import names
from olivine_api.status import FineTuneJobStatus, Phase
from tests.api.jobs import FINAL, Namespace, snapshot
from tests.api.kube import CONFIG_MAPS, FTJ, JOBS, Json, Kube
from tests.api.operator_process import PATHS, OperatorProcess, kubeconfig_of_operator, pod_token
from tests.support.chart import CHART, NAMESPACE, ROOT, read_objects, render_chart, settings_of, the
from tests.support.wait import wait_for

OLD = ROOT / "tests/fixtures/release-0.1.0"
NAME = "stored"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """Of its own: the other tests' has the CustomResourceDefinitions of today."""
    with ControlPlane(tmp_path_factory.mktemp("upgrade")) as plane:
        yield Kube(plane.kubeconfig)


@pytest.fixture(scope="module")
def upgraded(cluster: Kube, tmp_path_factory: pytest.TempPathFactory) -> "Upgraded":
    return Upgraded(cluster, tmp_path_factory.mktemp("old-chart"))


def old_chart(folder: Path) -> Path:
    """A chart that renders to what the previous one did."""
    (folder / "templates").mkdir()
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: olivine\nversion: 0.1.0\nappVersion: 0.1.0\n")
    (folder / "rendered.yaml").write_text((OLD / "chart.yaml").read_text())
    (folder / "templates/all.yaml").write_text('{{ .Files.Get "rendered.yaml" }}\n')
    return folder


class Upgraded:
    """The previous release with a running job, then today's chart over it."""

    def __init__(self, kube: Kube, folder: Path) -> None:
        self.kube = kube
        self.helm("install", "olivine", str(old_chart(folder)), "--create-namespace")
        self.old_deployment = kube.must("GET", f"{PATHS['Deployment']}/olivine-operator")
        kube.must("POST", "/api/v1/namespaces", {"metadata": {"name": "upgrade"}})
        self.ns = Namespace(kube, "upgrade")
        wait_for("FineTuneJobs are served", lambda: kube.request("GET", self.ns.path(FTJ)).ok, seconds=15)
        account = "/api/v1/namespaces/upgrade/serviceaccounts/default"
        wait_for("the ServiceAccount", lambda: kube.request("GET", account).ok, seconds=15)
        self.stored = self._job_of_the_old_operator()
        self.pod = self.ns.wait_pod(NAME)
        self.ns.pod_runs(self.pod)
        self.job = self.ns.wait_job(NAME)
        self.helm("upgrade", "olivine", str(CHART), "--set", "trainer.image.repository=trainer")
        self.objects = render_chart(values={"trainer": {"image": {"repository": "trainer"}}})

    def helm(self, *words: str) -> None:
        """As an administrator runs it."""
        command = [str(clients().build() / "helm"), *words, "--namespace", NAMESPACE, "--kubeconfig", str(self.kube.kubeconfig)]
        said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert said.returncode == 0, said.stderr

    def _job_of_the_old_operator(self) -> Json:
        text = (OLD / "job.json").read_text()
        made = self.kube.must("POST", self.ns.path(FTJ), json.loads(text)["manifest"])
        uid = made["metadata"]["uid"]
        old_uid = json.loads(text)["job"]["metadata"]["ownerReferences"][0]["uid"]
        left = json.loads(text.replace(old_uid, uid).replace(f"{NAME}-{old_uid[:6]}", f"{NAME}-{uid[:6]}"))
        stored = self.kube.merge(self.ns.path(FTJ, NAME, "status"), {"status": left["status"]})
        self.kube.must("POST", self.ns.path(CONFIG_MAPS), left["configMap"])
        self.kube.must("POST", self.ns.path(JOBS), left["job"])
        return stored


def test_every_object_of_the_previous_chart_takes_the_new_one(upgraded: Upgraded) -> None:
    kube = upgraded.kube
    old, new = upgraded.old_deployment, kube.must("GET", f"{PATHS['Deployment']}/olivine-operator")
    assert new["metadata"]["uid"] == old["metadata"]["uid"]
    assert new["spec"]["selector"] == old["spec"]["selector"]
    assert new["spec"]["replicas"] == 2
    assert new["spec"]["strategy"]["type"] == "RollingUpdate"
    for item in read_objects((OLD / "chart.yaml").read_text()):
        # What the new chart has no more, helm would delete: nothing yet.
        assert the(upgraded.objects, item["kind"], item["metadata"]["name"])
    crd = kube.must("GET", f"{PATHS['CustomResourceDefinition']}/finetunejobs.olivine.dev")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert crd["status"]["storedVersions"] == ["v1alpha1"]
    broken = [c for c in crd["status"]["conditions"] if c["type"] == "NonStructuralSchema" and c["status"] == "True"]
    assert broken == []


def test_what_the_previous_release_stored_is_valid_still(upgraded: Upgraded) -> None:
    ns = upgraded.ns
    before = upgraded.stored
    # The same manifest again, as a GitOps controller applies it: accepted, and nothing of the spec changes.
    manifest = json.loads((OLD / "job.json").read_text())["manifest"]

    def applied() -> Json | None:
        answer = upgraded.kube.apply(ns.path(FTJ), manifest)
        return answer.body if answer.ok else None

    after = wait_for("the new definition holds", applied, seconds=15)
    known = {key: value for key, value in after["spec"].items() if key in before["spec"]}
    for key, value in before["spec"].items():
        assert contains(known[key], value), key
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    status = FineTuneJobStatus.model_validate(after["status"])
    assert status.child is not None
    assert status.child.name == upgraded.job["metadata"]["name"]
    # And it may be written.
    ns.kube.merge(ns.path(FTJ, NAME, "status"), {"status": {"observedGeneration": after["metadata"]["generation"]}})


def contains(value: object, part: object) -> bool:
    """Whether a value has all that a part has: a later release fills in defaults of its own."""
    if isinstance(value, dict) and isinstance(part, dict):
        return all(key in value and contains(value[key], item) for key, item in part.items())
    return value == part


def test_a_job_that_runs_goes_on_and_ends_under_the_new_operator(upgraded: Upgraded, tmp_path: Path) -> None:
    ns, kube = upgraded.ns, upgraded.kube
    kubeconfig_of_operator(kube, tmp_path / "kubeconfig")
    operator = OperatorProcess(tmp_path / "kubeconfig", tmp_path, settings_of(upgraded.objects) | {"statusIntervalSeconds": 1})
    operator.start()
    try:
        ns.wait_phase(NAME, Phase.RUNNING, seconds=20)
        # The pod is told of the new operator's CA by the ConfigMap that it has.
        wait_for("the CA", lambda: "BEGIN CERTIFICATE" in ca_of(ns), seconds=15)
        body = snapshot("Training", 5, metrics={"trainLoss": 1.0})
        code, text = operator.post("upgrade", NAME, body, token=pod_token(kube, upgraded.pod), ca=ca_of(ns))
        assert code == 204, text
        wait_for("the step", lambda: (p := ns.status(NAME).progress) and p.step == 5, seconds=10)
        job = ns.wait_job(NAME)
        assert job["metadata"]["uid"] == upgraded.job["metadata"]["uid"]
        assert job["metadata"]["generation"] == upgraded.job["metadata"]["generation"], "the operator changed the Job's spec"
        assert [pod["metadata"]["uid"] for pod in ns.pods(NAME)] == [upgraded.pod["metadata"]["uid"]]
        status = ns.status(NAME)
        assert (status.restarts, status.last_failure) == (0, None)
        message = {"reason": "Completed", "message": "published", "step": 10, "attempt": 1, "snapshot": FINAL}
        ns.pod_ends(upgraded.pod, 0, message)
        ns.wait_phase(NAME, Phase.SUCCEEDED, seconds=30)
    finally:
        operator.stop()
    assert "Traceback" not in operator.log.read_text()


def test_uninstalling_keeps_definitions_and_jobs(upgraded: Upgraded) -> None:
    kube = upgraded.kube
    upgraded.helm("uninstall", "olivine")
    assert kube.request("GET", f"{PATHS['Deployment']}/olivine-operator").code == 404
    assert kube.request("GET", f"{PATHS['ClusterRole']}/olivine-operator").code == 404
    for name in ("finetunejobs.olivine.dev", "adapterbundles.olivine.dev"):
        assert kube.must("GET", f"{PATHS['CustomResourceDefinition']}/{name}")
    assert upgraded.ns.raw(NAME)["metadata"]["uid"] == upgraded.stored["metadata"]["uid"]


def ca_of(ns: Namespace) -> str:
    return ns.config_maps(NAME)[0]["data"][names.CONFIG_CA]
