"""The embedded cluster runs real pods, and what a trainer relies on is there (three pods in all); it goes without a trace."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster import images, lifecycle
from devcluster.paths import DEFAULT_STATE, State
from tests.support.cluster import ROOT
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster

NAMESPACE = "team-a"
GROUP = "devcluster-check"
# The first start of a pod reads the environment from a cold disk cache.
READY_SECONDS = 60

PEER = """
    import json, socket, time
    deadline = time.monotonic() + 30
    found = {}
    while time.monotonic() < deadline and len(found) < 2:
        for name in ("first", "second"):
            try:
                found[name] = socket.gethostbyname(f"{name}.devcluster-check")
            except OSError:
                time.sleep(0.2)
    print(json.dumps(found), flush=True)
    time.sleep(600)
"""
GREEDY = """
    held = []
    while True:
        held.append(bytearray(16 << 20))
"""


def kubectl(*words: str, stdin: str | None = None) -> str:
    program = DEFAULT_STATE / "bin" / "kubectl"
    env = {**os.environ, "KUBECONFIG": str(DEFAULT_STATE / "kubeconfig")}
    argv = [str(program), "--namespace", NAMESPACE, *words]
    done = subprocess.run(argv, input=stdin, env=env, capture_output=True, text=True, check=False, timeout=READY_SECONDS + 30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pod(image: str, name: str, script: str, memory: str) -> dict[str, Any]:
    token = {"serviceAccountToken": {"path": "token", "audience": "olivine-status", "expirationSeconds": 3600}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{GROUP}-{name}", "labels": {"group": GROUP}},
        "spec": {
            "hostname": name,
            "subdomain": GROUP,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": ["python", "-c", textwrap.dedent(script)],
                    "resources": {"limits": {"memory": memory, "cpu": "1"}, "requests": {"cpu": "50m"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "environment", "mountPath": "/opt/olivine/venv", "readOnly": True},
                        {"name": "identity", "mountPath": "/var/run/olivine", "readOnly": True},
                    ],
                }
            ],
            "volumes": [
                {"name": "environment", "persistentVolumeClaim": {"claimName": "olivine-environment", "readOnly": True}},
                {"name": "identity", "projected": {"sources": [token]}},
            ],
        },
    }


@pytest.fixture(scope="module")
def pods() -> Iterator[None]:
    if not (DEFAULT_STATE / "kubeconfig").exists():
        pytest.fail("no cluster runs: start it by `make cluster`")
    image = images.load(lifecycle.require(State(DEFAULT_STATE))).trainer.name
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"group": GROUP}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": GROUP}, "spec": spec}
    members = [pod(image, "first", PEER, "256Mi"), pod(image, "second", PEER, "256Mi"), pod(image, "greedy", GREEDY, "96Mi")]
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": [service, *members]})
    kubectl("delete", "--ignore-not-found", "--filename", "-", stdin=manifest)
    kubectl("apply", "--filename", "-", stdin=manifest)
    ready = f"--timeout={READY_SECONDS}s"
    kubectl("wait", "--for=condition=Ready", ready, f"pod/{GROUP}-first", f"pod/{GROUP}-second")
    yield
    kubectl("delete", "--wait=false", "--filename", "-", stdin=manifest)


def in_pod(script: str) -> str:
    return kubectl("exec", f"{GROUP}-first", "--", "python", "-c", textwrap.dedent(script)).strip()


def test_two_pods_find_each_other_by_the_headless_service_and_say_so_in_their_logs(pods: None) -> None:
    wanted = {
        name: json.loads(kubectl("get", "pod", f"{GROUP}-{name}", "-o", "json"))["status"]["podIP"] for name in ("first", "second")
    }
    deadline = time.monotonic() + 40
    while not (printed := kubectl("logs", f"{GROUP}-second")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert json.loads(printed) == wanted


def test_pod_is_nobody_on_a_read_only_root_with_the_environment_mounted_read_only(pods: None) -> None:
    user, root, packages, code = in_pod("""
        import os, sys
        def writable(path):
            return os.access(path, os.W_OK)
        print(os.getuid(), writable("/opt"), writable(sys.prefix), os.path.isdir("/opt/olivine/code/olivine_trainer"))
    """).split()
    assert (user, root, packages) == ("65532", "False", "False")
    assert code == str((Path(__file__).parents[2] / "trainer_image" / "olivine_trainer").is_dir())


def test_projected_token_is_for_its_own_audience(pods: None) -> None:
    claims = json.loads(
        in_pod("""
        import base64, pathlib
        part = pathlib.Path("/var/run/olivine/token").read_text().split(".")[1]
        print(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode())
    """)
    )
    assert claims["aud"] == ["olivine-status"]
    assert claims["kubernetes.io"]["pod"]["name"] == f"{GROUP}-first"


def test_pod_reaches_the_store_and_the_api_server_by_their_names_and_addresses(pods: None) -> None:
    endpoint = dict(line.split("=", 1) for line in (DEFAULT_STATE / "s3.env").read_text().splitlines())["AWS_ENDPOINT_URL"]
    answer = in_pod(f"""
        import urllib.request, urllib.error, ssl
        try:
            urllib.request.urlopen("{endpoint}/models", timeout=5)
        except urllib.error.HTTPError as error:
            print(error.code)
        context = ssl._create_unverified_context()
        print(urllib.request.urlopen("https://kubernetes.default.svc/readyz", timeout=5, context=context).read().decode())
    """)
    assert answer.split() == ["403", "ok"], "the store refuses strangers; the API server tells anybody that it is ready"


def test_memory_limit_ends_a_greedy_container_as_oom_killed(pods: None) -> None:
    kubectl("wait", "--for=jsonpath={.status.phase}=Failed", "--timeout=30s", f"pod/{GROUP}-greedy")
    status = json.loads(kubectl("get", "pod", f"{GROUP}-greedy", "-o", "json"))["status"]
    assert status["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"


def devcluster(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "devcluster", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_namespace_that_is_made_again_can_be_granted_again() -> None:
    """A volume stays bound to the claim of the namespace that is gone: the second grant waited for ever."""
    for _ in range(2):
        devcluster("grant", "devcluster-again")
        kubectl("delete", "namespace", "devcluster-again", "--wait=true")


def traces(state: Path) -> dict[str, list[str]]:
    """What a cluster may leave on its machine, this session's own cluster included."""
    settings = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
    commands = [path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    return {
        "settings": [Path("/proc/sys", name).read_text() for name in settings],
        "namespaces": sorted(path.name for path in Path("/run/netns").glob("*")),
        "links": sorted(path.name for path in Path("/sys/class/net").glob("olv-*")),
        "cgroups": sorted(str(path) for path in Path("/sys/fs/cgroup").glob("**/olivine-*") if path.parent.name != path.name),
        "mounts": sorted(line for line in Path("/proc/mounts").read_text().splitlines() if "olivine" in line),
        "slots": sorted(path.name for path in Path("/run/olivine").glob("*")),
        "processes": [command for command in commands if str(state) in command],
        "files": [path.name for path in state.glob("*") if path.name != "log"],
    }


@pytest.mark.full
def test_cluster_whose_start_was_killed_is_taken_down_without_a_trace(tmp_path: Path) -> None:
    state = tmp_path / "state"
    before = traces(state)
    words = [sys.executable, "-m", "devcluster", "up", "--no-operator", "--state", str(state)]
    starting = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        # kubelet is the last but two: by then there are mounts, cgroups and a network.
        wait_for("kubelet is started", (state / "log" / "kubelet.log").exists, seconds=90)
    finally:
        starting.kill()
        starting.wait()
    assert traces(state) != before
    for _ in range(2):
        devcluster("down", "--state", str(state))
        assert traces(state) == before
    assert (state / "log" / "kubelet.log").exists(), "the logs stay"
    shutil.rmtree(state)
