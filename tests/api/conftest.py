"""One control plane and one operator for the session; a namespace for each test."""

import itertools
from collections.abc import Iterator

import pytest

from devcluster.controlplane import ControlPlane
from olivine_api.status import Phase
from tests.api.jobs import Namespace
from tests.api.kube import FTJ, Json, Kube
from tests.api.operator_process import OperatorProcess, install_chart, kubeconfig_of_operator
from tests.support.wait import wait_for

_NUMBERS = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/api/" in item.path.as_posix():
            item.add_marker(pytest.mark.api)


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as plane:
        yield Kube(plane.kubeconfig)


@pytest.fixture(scope="session")
def operator(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    folder = tmp_path_factory.mktemp("operator")
    settings = install_chart(kube)
    wait_for("FineTuneJobs are served", lambda: kube.request("GET", "/apis/olivine.dev/v1alpha1/finetunejobs").ok, seconds=15)
    kubeconfig_of_operator(kube, folder / "kubeconfig")
    # Reports are told at once here: tests wait for them.
    operator = OperatorProcess(folder / "kubeconfig", folder, settings | {"statusIntervalSeconds": 1})
    operator.start()
    yield operator
    if operator.running:
        assert operator.stop() == 0
    assert "Traceback" not in operator.log.read_text()


@pytest.fixture
def ns(kube: Kube) -> Iterator[Namespace]:
    name = f"test-{next(_NUMBERS)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.must("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    # Without it the Job controller's first pods are refused.
    wait_for("the ServiceAccount", lambda: kube.request("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default").ok, seconds=10)
    namespace = Namespace(kube, name)
    yield namespace
    # What is left would be in the counts of later tests.
    kube.must("DELETE", namespace.path(FTJ))


@pytest.fixture
def pod(ns: Namespace, operator: OperatorProcess) -> Json:
    """The running pod of a job named `report`."""
    ns.apply("report")
    pod = ns.wait_pod("report")
    ns.pod_runs(pod)
    ns.wait_phase("report", Phase.RUNNING)
    return pod
