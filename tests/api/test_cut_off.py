"""Between the operator and the API server: connections that turn deaf, and a network that is cut."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from olivine_api import names
from olivine_api.status import Phase
from tests.api.jobs import Namespace, snapshot
from tests.api.kube import Kube
from tests.api.operator_process import OperatorProcess, kubeconfig_of_operator, pod_token
from tests.support.proxy import Proxy
from tests.support.wait import wait_for


@pytest.fixture
def proxy(kube: Kube) -> Iterator[Proxy]:
    port = urlsplit(kube.server).port
    assert port is not None
    with Proxy(port) as proxy:
        yield proxy


@pytest.fixture
def behind(kube: Kube, operator: OperatorProcess, proxy: Proxy, tmp_path: Path) -> Iterator[OperatorProcess]:
    """A replica that reaches the API server through the proxy only; the session's operator is the other one."""
    kubeconfig_of_operator(kube, tmp_path / "kubeconfig", server=f"https://127.0.0.1:{proxy.port}")
    behind = OperatorProcess(tmp_path / "kubeconfig", tmp_path, operator.settings | {"resyncSeconds": 5})
    yield behind
    if behind.running:
        behind.stop()
    if not operator.running:
        operator.start()
    wait_for("the session's operator leads", operator.leads, seconds=40)
    assert "Traceback" not in behind.log.read_text()


@pytest.mark.full
def test_a_watch_that_turned_deaf_fails_liveness_and_a_new_start_mends_it(
    ns: Namespace, operator: OperatorProcess, behind: OperatorProcess, proxy: Proxy
) -> None:
    behind.start()
    ns.apply("before")
    wait_for("the watch tells", lambda: 'olivine_watch_events_total{kind="FineTuneJob"}' in behind.get("/metrics")[1], seconds=10)
    assert behind.get("/healthz")[0] == 200
    proxy.deafen()
    # Changes that it hears nothing of; a listing shows them, and mends the cache meanwhile.
    numbers = iter(range(1000))

    def noticed() -> str | None:
        ns.apply(f"unheard-{next(numbers)}", suspend=True)
        code, text = behind.get("/healthz")
        return text if code == 503 else None

    said = wait_for("liveness fails", noticed, seconds=150, every=3)
    assert "the watch of" in said
    assert "is dead: listings show what it does not tell" in said
    assert behind.get("/readyz")[0] == 200, "it is served as long as it lives: a standby's cache is mended by listings"
    behind.stop()
    behind.start()
    assert behind.get("/healthz") == (200, "ok\n")


@pytest.mark.full
def test_a_deaf_watch_of_a_leader_is_noticed_long_before_the_next_listing(
    ns: Namespace, kube: Kube, operator: OperatorProcess, proxy: Proxy, tmp_path: Path
) -> None:
    """Its own writes, and what its conflicts show, ought to come by the watch: no listing is needed to see that they do not."""
    operator.stop()
    kubeconfig_of_operator(kube, tmp_path / "kubeconfig", server=f"https://127.0.0.1:{proxy.port}")
    leader = OperatorProcess(tmp_path / "kubeconfig", tmp_path, operator.settings | {"resyncSeconds": 600})
    leader.start()
    ns.apply("report")
    pod = ns.wait_pod("report")
    ns.pod_runs(pod)
    ns.wait_phase("report", Phase.RUNNING)
    token, ca = pod_token(kube, pod), ns.config_maps("report")[0]["data"][names.CONFIG_CA]
    assert leader.post(ns.name, "report", snapshot("Training", 0), token=token, ca=ca)[0] == 204
    proxy.deafen()
    steps = iter(range(1, 1000))

    def noticed() -> str | None:
        leader.post(ns.name, "report", snapshot("Training", next(steps)), token=token, ca=ca)
        code, text = leader.get("/healthz")
        return text if code == 503 else None

    assert "the watch of finetunejobs is dead" in wait_for("liveness fails", noticed, seconds=120, every=2)
    leader.stop()
    operator.start()
    wait_for("the session's operator leads", operator.leads, seconds=40)


def test_a_leader_that_is_cut_off_stops_before_another_begins(
    ns: Namespace, operator: OperatorProcess, behind: OperatorProcess, proxy: Proxy
) -> None:
    operator.stop()
    behind.start()
    wait_for("it leads", behind.leads, seconds=20)
    operator.start()
    assert not operator.leads()
    ns.apply("before")
    ns.wait_pod("before")
    proxy.shut(True)
    cut = time.monotonic()
    stopped_after: float | None = None
    while not operator.leads():
        assert time.monotonic() < cut + 40, "nobody took over"
        if stopped_after is None and not behind.leads():
            stopped_after = time.monotonic() - cut
        time.sleep(0.1)
    taken_after = time.monotonic() - cut
    assert not behind.leads()
    assert stopped_after is not None
    assert stopped_after < 9.5 < taken_after <= 20
    # The other one works, and the one that comes back looks on.
    ns.apply("after")
    ns.wait_pod("after")
    proxy.shut(False)
    before = behind.requests()
    ns.change("after", suspend=True)
    ns.wait_reason("after", "Suspended", "SuspendedByUser")
    written = {key: n - before.get(key, 0) for key, n in behind.requests().items() if key[0] not in ("GET", "LIST")}
    assert not any(n for (_, kind), n in written.items() if kind != "TokenReview"), written
    wait_for("it is well again", lambda: behind.get("/healthz")[0] == 200, seconds=40)
    assert not behind.leads()
