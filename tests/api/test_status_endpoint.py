"""The status endpoint with real tokens: a trainer tells of its own job, and nobody else of anything."""

import base64
import json
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from devcluster.paths import State
from olivine_api import names
from olivine_api.status import Phase
from tests.api.jobs import Namespace, snapshot
from tests.api.kube import Json
from tests.api.operator_process import NAMESPACE, OperatorProcess, pod_token
from tests.support.wait import wait_for


def noted_ca(ns: Namespace) -> str:
    return ns.wait_job("report")["metadata"]["annotations"]["olivine.dev/config-digest"]


def test_a_trainers_report_becomes_status(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    body = snapshot("Training", 3, metrics={"trainLoss": 2.5}, curve=[{"step": 3, "trainLoss": 2.5}])
    code, text = operator.post(ns.name, "report", body, token=pod_token(ns.kube, pod), ca=ns.ca("report"))
    assert (code, text) == (204, "")
    wait_for("the step", lambda: (p := ns.status("report").progress) and p.step == 3, seconds=5)
    status = ns.status("report")
    assert status.metrics == {"trainLoss": 2.5}
    assert status.attempt == 1
    assert status.progress is not None
    assert status.progress.last_update_time is not None


def test_tokens_that_are_not_the_pods_own_are_refused(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    ca, kube = ns.ca("report"), ns.kube
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
    ca, token = ns.ca("report"), pod_token(ns.kube, pod)
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
    ca, token = ns.ca("report"), pod_token(ns.kube, pod)

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
    ca = ns.ca("report")
    operator.stop()
    operator.start()
    code, _ = operator.post(ns.name, "report", snapshot("Training", 4), token=pod_token(ns.kube, pod), ca=ca)
    assert code == 204
    secret = ns.kube.must("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/olivine-status-tls")
    assert set(secret["data"]) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}


def test_a_running_jobs_pods_are_told_of_a_new_ca(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    old, noted = ns.ca("report"), noted_ca(ns)
    operator.stop()
    ns.kube.must("DELETE", f"/api/v1/namespaces/{NAMESPACE}/secrets/olivine-status-tls")
    operator.start()
    wait_for("the new CA", lambda: ns.ca("report") != old, seconds=10)
    code, _ = operator.post(ns.name, "report", snapshot("Training", 4), token=pod_token(ns.kube, pod), ca=ns.ca("report"))
    assert code == 204
    wait_for("the note of it", lambda: noted_ca(ns) != noted, seconds=5)


def posted(operator: OperatorProcess, name: str, ns: Namespace, *, token: str, ca: str, **members: Any) -> tuple[int, str]:
    """An answer within the rate."""
    body = snapshot("Training", 9, **members)

    def answer() -> tuple[int, str] | None:
        found = operator.post(ns.name, name, body, token=token, ca=ca)
        return found if found[0] != 429 else None

    return wait_for("an answer within the rate", answer, seconds=10, every=0.5)


def test_a_pod_of_another_job_tells_nothing_of_this_one(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    ns.apply("another")
    other = ns.wait_pod("another")
    code, text = posted(operator, "report", ns, token=pod_token(ns.kube, other), ca=ns.ca("report"))
    assert (code, "does not work for this job" in text) == (403, True)
    assert ns.status("report").progress is None


def test_a_pod_of_an_earlier_attempt_tells_nothing_any_more(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    ca, token = ns.ca("report"), pod_token(ns.kube, pod)
    assert posted(operator, "report", ns, token=token, ca=ca)[0] == 204
    ns.pod_ends(pod, 30, {"category": "Infrastructure", "reason": "StorageUnavailable", "message": "the bucket is away", "step": 3})
    wait_for("the operator knows", lambda: ns.status("report").restarts == 1, seconds=15)
    # As one on a node that was cut off: it goes on, and its token is good still.
    code, text = posted(operator, "report", ns, token=token, ca=ca)
    assert (code, "earlier attempt" in text) == (403, True)
    later = ns.wait_pod("report", without=(pod["metadata"]["name"],), seconds=40)
    ns.pod_runs(later)
    token = pod_token(ns.kube, later)
    wait_for("the next pod's report", lambda: posted(operator, "report", ns, token=token, ca=ca, attempt=2)[0] == 204, seconds=10)
    wait_for("its attempt", lambda: ns.status("report").attempt == 2, seconds=5)
    code, text = posted(operator, "report", ns, token=token, ca=ca, attempt=1)
    assert (code, "attempt 1 is over: the job is at attempt 2" in text) == (409, True)


def test_of_several_pods_the_first_one_reports(ns: Namespace, operator: OperatorProcess) -> None:
    ns.apply("report", pods={"count": 2})
    pods = wait_for("both pods", lambda: found if len(found := ns.pods("report")) == 2 else None, seconds=20)
    by_index = {pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]: pod for pod in pods}
    for pod in pods:
        ns.pod_runs(pod)
    ns.wait_phase("report", Phase.RUNNING)
    code, text = posted(operator, "report", ns, token=pod_token(ns.kube, by_index["1"]), ca=ns.ca("report"))
    assert (code, "the pod with index 0 reports for all" in text) == (403, True)
    assert posted(operator, "report", ns, token=pod_token(ns.kube, by_index["0"]), ca=ns.ca("report"))[0] == 204


def test_an_expired_token_is_refused(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    ca, good = ns.ca("report"), pod_token(ns.kube, pod)
    # Signed with the cluster's own key: the same claims with another end are good, so that the end alone is what is refused.
    assert posted(operator, "report", ns, token=signed_again(ns, good, ends_in=500), ca=ca)[0] == 204
    code, text = posted(operator, "report", ns, token=signed_again(ns, good, ends_in=-5), ca=ca)
    assert (code, "expired" in text) == (401, True)


def signed_again(ns: Namespace, token: str, *, ends_in: int) -> str:
    """The same token with another end."""
    header, claims, _ = token.split(".")
    body = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    body |= {"exp": int(time.time()) + ends_in, "iat": int(time.time()) - 600, "nbf": int(time.time()) - 600}
    key = serialization.load_pem_private_key((State(ns.kube.kubeconfig.parent).pki / "sa.key").read_bytes(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    text = f"{header}.{base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip('=')}"
    signature = key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def test_a_token_is_reviewed_once_and_junk_never(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    ca, token = ns.ca("report"), pod_token(ns.kube, pod)

    def reviews() -> int:
        return operator.requests().get(("POST", "TokenReview"), 0)

    before = reviews()
    for _ in range(3):
        assert posted(operator, "report", ns, token=token, ca=ca)[0] == 204
    assert reviews() == before + 1
    with ThreadPoolExecutor(8) as pool:
        codes = set(pool.map(lambda n: operator.post(ns.name, "report", snapshot(), token=f"junk-{n}", ca=ca)[0], range(60)))
    assert codes == {401}
    assert reviews() == before + 1
    # A flood does not keep the trainer from telling.
    assert posted(operator, "report", ns, token=token, ca=ca)[0] == 204


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b'"' + b"x" * 1024

    code, text = operator.post(ns.name, "report", endless(), token=pod_token(ns.kube, pod), ca=ns.ca("report"))
    assert (code, "at most 65536 bytes" in text) == (413, True)


def test_a_body_that_does_not_come_is_not_waited_for(ns: Namespace, operator: OperatorProcess, pod: Json) -> None:
    def dawdling() -> Iterator[bytes]:
        yield b"{"
        time.sleep(11)
        yield b"}"

    code, text = operator.post(ns.name, "report", dawdling(), token=pod_token(ns.kube, pod), ca=ns.ca("report"))
    assert (code, "within 10 seconds" in text) == (408, True)


def test_one_ca_follows_another_while_a_trainer_reports(
    ns: Namespace, operator: OperatorProcess, pod: Json, tmp_path: Path
) -> None:
    """The trainer reads the CA's file anew for each report: here the ConfigMap, with the lag that kubelet has."""
    secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/olivine-status-tls"
    operator.stop()
    endpoint = {"caOverlapSeconds": 8, "certificateCheckSeconds": 0.5}
    hurried = OperatorProcess(operator.kubeconfig, tmp_path, operator.settings | {"statusEndpoint": endpoint})
    hurried.start()
    token = pod_token(ns.kube, pod)
    seen: list[tuple[int, str]] = []
    try:
        first = ns.ca("report")
        old = ns.kube.must("GET", secret)["data"]["ca.crt"]
        ns.kube.merge(secret, {"metadata": {"annotations": {"olivine.dev/rotate-ca": "now"}}})
        lagging, deadline = first, time.monotonic() + 60
        while not (len(seen) > 3 and seen[-1][0] == 1 and ns.kube.must("GET", secret)["data"]["ca.crt"] != old):
            assert time.monotonic() < deadline, f"the CA was not replaced: {seen}"
            code, text = posted(hurried, "report", ns, token=token, ca=lagging)
            assert code == 204, text
            seen.append((lagging.count("BEGIN CERTIFICATE"), text))
            time.sleep(2)
            lagging = ns.ca("report")
        assert [count for count, _ in seen][-1] == 1
        assert 2 in [count for count, _ in seen]
        assert lagging != first
        # What trusted the old one only does not trust the new one's certificate.
        with pytest.raises(ssl.SSLCertVerificationError):
            hurried.post(ns.name, "report", snapshot(), token=token, ca=first)
        assert "annotations" not in ns.kube.must("GET", secret)["metadata"]
    finally:
        hurried.stop()
        operator.start()


def test_a_certificate_that_was_deleted_is_put_back_as_it_was(
    ns: Namespace, operator: OperatorProcess, pod: Json, tmp_path: Path
) -> None:
    secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/olivine-status-tls"
    operator.stop()
    watchful = OperatorProcess(
        operator.kubeconfig, tmp_path, operator.settings | {"statusEndpoint": {"certificateCheckSeconds": 0.5}}
    )
    watchful.start()
    try:
        before = ns.kube.must("GET", secret)["data"]
        ns.kube.must("DELETE", secret)
        wait_for("the Secret", lambda: ns.kube.request("GET", secret).ok, seconds=10)
        assert ns.kube.must("GET", secret)["data"] == before
    finally:
        watchful.stop()
        operator.start()
