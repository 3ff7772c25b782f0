"""The status endpoint with real tokens: a trainer tells of its own job, and nobody else of anything."""

import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from olivine_api import names
from olivine_api.status import Phase
from tests.api.jobs import Namespace, snapshot
from tests.api.kube import Json
from tests.api.operator_process import NAMESPACE, OperatorProcess, pod_token
from tests.support.wait import wait_for


@pytest.fixture
def pod(ns: Namespace, operator: OperatorProcess) -> Json:
    ns.apply("report")
    pod = ns.wait_pod("report")
    ns.pod_runs(pod)
    ns.wait_phase("report", Phase.RUNNING)
    return pod


def ca_of(ns: Namespace) -> str:
    return ns.config_maps("report")[0]["data"][names.CONFIG_CA]


def noted_ca(ns: Namespace) -> str:
    return ns.wait_job("report")["metadata"]["annotations"]["olivine.dev/ca-digest"]


def test_a_trainers_report_becomes_status(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    body = snapshot("Training", 3, metrics={"trainLoss": 2.5}, curve=[{"step": 3, "trainLoss": 2.5}])
    code, text = operator.post(ns.name, "report", body, token=pod_token(ns.kube, pod), ca=ca_of(ns))
    assert (code, text) == (204, "")
    wait_for("the step", lambda: (p := ns.status("report").progress) and p.step == 3, seconds=5)
    status = ns.status("report")
    assert status.metrics == {"trainLoss": 2.5}
    assert status.attempt == 1
    assert status.progress is not None
    assert status.progress.last_update_time is not None


def test_tokens_that_are_not_the_pods_own_are_refused(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    ca, kube = ca_of(ns), ns.kube
    # A pod of the same namespace that is no trainer of this job, though it says so.
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    stranger = kube.must(
        "POST",
        f"/api/v1/namespaces/{ns.name}/pods",
        {
            "metadata": {
                "name": "stranger",
                "labels": {names.LABEL_JOB: "report", names.LABEL_JOB_UID: ns.raw("report")["metadata"]["uid"]},
            },
            "spec": {"containers": [{"name": "c", "image": "i", "securityContext": security}]},
        },
    )
    unbound = kube.must(
        "POST",
        f"/api/v1/namespaces/{ns.name}/serviceaccounts/default/token",
        {"spec": {"audiences": [names.TOKEN_AUDIENCE], "expirationSeconds": 600}},
    )["status"]["token"]
    good = pod_token(kube, pod)
    forged = good[:-8] + ("A" * 8 if not good.endswith("A" * 8) else "B" * 8)
    cases = {
        "none": (None, 401),
        "junk": ("junk", 401),
        "forged": (forged, 401),
        "another audience": (pod_token(kube, pod, audience="https://kubernetes.default.svc.cluster.local"), 401),
        "bound to no pod": (unbound, 401),
        "a stranger's": (pod_token(kube, stranger), 403),
    }
    version = ns.raw("report")["metadata"]["resourceVersion"]
    for case, (token, expected) in cases.items():
        code, text = operator.post(ns.name, "report", snapshot(step=9), token=token, ca=ca)
        assert code == expected, f"{case}: {code} {text}"
        assert '"message"' in text
    assert operator.post(ns.name, "another", snapshot(step=9), token=good, ca=ca)[0] == 403
    assert operator.post("default", "report", snapshot(step=9), token=good, ca=ca)[0] == 403
    assert ns.raw("report")["metadata"]["resourceVersion"] == version
    assert ns.status("report").progress is None


def test_reports_that_are_not_in_order_are_refused_and_leave_no_trace(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    ca, token = ca_of(ns), pod_token(ns.kube, pod)
    cases = {
        b"[": (400, "not JSON"),
        b'{"progress":{"stage":"Dancing"}}': (422, "report.progress.stage"),
        b'{"progress":{"stage":"Training","epoch":NaN}}': (422, "progress.epoch is not a finite number"),
        b'{"progress":{"stage":"Training","step":1' + b"0" * 30 + b"}}": (422, "progress.step is too large"),
        b'{"progress":{"stage":"Training"},"pod":"' + b"x" * 70_000 + b'"}': (413, "at most 65536 bytes"),
    }
    for body, (expected, sentence) in cases.items():

        def answer(body: bytes = body) -> tuple[int, str] | None:
            found = operator.post(ns.name, "report", body, token=token, ca=ca)
            return found if found[0] != 429 else None

        code, text = wait_for("an answer within the rate", answer, seconds=10, every=0.5)
        assert code == expected, text
        assert sentence in text
    assert ns.status("report").progress is None


def test_a_flood_is_throttled(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    ca, token = ca_of(ns), pod_token(ns.kube, pod)

    def post(_: int = 0) -> int:
        return operator.post(ns.name, "report", snapshot(step=1), token=token, ca=ca)[0]

    assert post() == 204
    # Many at a time: one after another they would be slow enough on a machine that has much else to do.
    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(post, range(24))) == {204, 429}


def test_only_the_jobs_ca_vouches_for_the_endpoint(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        operator.post(ns.name, "report", snapshot(), token=None, ca=ns.kube.ca)


def test_the_certificate_outlives_a_restart(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    ca = ca_of(ns)
    operator.stop()
    operator.start()
    code, _ = operator.post(ns.name, "report", snapshot("Training", 4), token=pod_token(ns.kube, pod), ca=ca)
    assert code == 204
    secret = ns.kube.must("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/olivine-status-tls")
    assert set(secret["data"]) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}


def test_a_running_jobs_pods_are_told_of_a_new_ca(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    old, noted = ca_of(ns), noted_ca(ns)
    operator.stop()
    ns.kube.must("DELETE", f"/api/v1/namespaces/{NAMESPACE}/secrets/olivine-status-tls")
    operator.start()
    wait_for("the new CA", lambda: ca_of(ns) != old, seconds=10)
    code, _ = operator.post(ns.name, "report", snapshot("Training", 4), token=pod_token(ns.kube, pod), ca=ca_of(ns))
    assert code == 204
    wait_for("the note of it", lambda: noted_ca(ns) != noted, seconds=5)
