"""The operator as a process of its own, with the rights and settings that the chart gives it."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivine_api import names
from tests.api.kube import Json, Kube
from tests.support.chart import NAMESPACE, render_chart, settings_of
from tests.support.wait import wait_for

# Namespaces with this label are closed: tests/api/test_policies.py.
CLOSED_LABEL = "olivine-test-policy"
POLICIES: list[Json] = [
    {
        "namespaceSelector": {"matchLabels": {CLOSED_LABEL: "closed"}},
        "secretNames": ["team-*"],
        "serviceAccountNames": ["default"],
        "storagePrefixes": ["s3://olivine"],
        "images": [],
    },
    {"namespaceSelector": {"matchLabels": {CLOSED_LABEL: "open"}}, "allowFileUris": True, "allowHostPath": True},
]
PATHS = {
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
    "ConfigMap": f"/api/v1/namespaces/{NAMESPACE}/configmaps",
    "Service": f"/api/v1/namespaces/{NAMESPACE}/services",
    "Deployment": f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles",
    "NetworkPolicy": f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies",
    "PodDisruptionBudget": f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets",
    "RoleBinding": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings",
}


def install_chart(kube: Kube) -> Json:
    """Applies all of the chart but its Deployment, which no node would run; returns the operator's settings."""
    kube.must("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    values = {
        "trainer": {"image": {"repository": "trainer"}},
        "policies": POLICIES,
        # Lost pods are looked at soon and removed: tests play the node that is gone.
        "lostPods": {"timeoutSeconds": 2, "remove": True},
    }
    objects = render_chart(values=values)
    for item in objects:
        query = "&dryRun=All" if item["kind"] == "Deployment" else ""
        answer = kube.apply(PATHS[item["kind"]], item, query=query)
        assert answer.ok, f"{item['kind']} {item['metadata']['name']}: {answer.message}"
    return settings_of(objects)


def kubeconfig_of_operator(kube: Kube, path: Path, *, server: str | None = None) -> None:
    """A kubeconfig with the ServiceAccount's own rights; another server is a proxy before the real one."""
    request = {"spec": {"expirationSeconds": 3600}}
    token = kube.must("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/olivine-operator/token", request)["status"]["token"]
    authority = path.with_suffix(".ca")
    authority.write_text(kube.ca)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server or kube.server, "certificate-authority": str(authority)}}],
        "users": [{"name": "operator", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "operator"}}],
        "current-context": "test",
    }
    path.write_text(json.dumps(config))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@dataclass
class OperatorProcess:
    """`python -m olivine_operator`."""

    kubeconfig: Path
    folder: Path
    settings: Json

    def __post_init__(self) -> None:
        self.status_port, self.http_port = free_port(), free_port()
        endpoint = {"port": self.status_port, "address": "127.0.0.1"}
        endpoint = self.settings.get("statusEndpoint", {}) | endpoint
        local = {"httpPort": self.http_port, "httpAddress": "127.0.0.1", "statusEndpoint": endpoint}
        self._file = self.folder / "settings.json"
        self._file.write_text(json.dumps(self.settings | local))
        self.log = self.folder / "operator.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = os.environ | {"KUBECONFIG": str(self.kubeconfig), "OLIVINE_SETTINGS": str(self._file)}
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "olivine_operator"]
            self._process = subprocess.Popen(command, env=env, stderr=log, stdout=log, cwd=self.folder)
        wait_for("the operator is ready", self._ready, seconds=30, every=0.1)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(timeout=20)
        self._process = None
        return code

    def wait(self, *, seconds: float) -> int:
        """The exit code, once it has ended by itself."""
        assert self._process is not None
        code = self._process.wait(timeout=seconds)
        self._process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def resident_kib(self) -> int:
        """Resident memory of the process."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    @property
    def running(self) -> bool:
        return self._process is not None

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def leads(self) -> bool:
        return self.running and "\nolivine_leader 1.0" in self.get("/metrics")[1]

    def requests(self) -> dict[tuple[str, str], int]:
        """Requests to the API server so far, by verb and kind; the Lease's aside, which is renewed whatever happens."""
        pattern = re.compile(r'^olivine_api_requests_total\{code="(\d+)",kind="(\w+)",verb="(\w+)"\} ([\d.]+)', re.MULTILINE)
        counts: dict[tuple[str, str], int] = {}
        for _, kind, verb, value in pattern.findall(self.get("/metrics")[1]):
            if kind != "Lease":
                counts[verb, kind] = counts.get((verb, kind), 0) + int(float(value))
        return counts

    def post(
        self,
        namespace: str,
        name: str,
        body: Any,
        *,
        token: str | None,
        ca: str,
        headers: dict[str, str] | None = None,
        path: str = names.STATUS_PATH,
    ) -> tuple[int, str]:
        """Reports as a trainer does: by the endpoint's name, trusting the job's CA only."""
        context = ssl.create_default_context(cadata=ca)
        host = f"olivine-status.{NAMESPACE}.svc"
        plain = socket.create_connection(("127.0.0.1", self.status_port), timeout=15)
        connection = http.client.HTTPSConnection(host, timeout=15)
        connection.sock = context.wrap_socket(plain, server_hostname=host)
        own = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        # An iterator goes out in chunks, without a length.
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        try:
            connection.request("POST", path.format(namespace=namespace, name=name), data, own | (headers or {}))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


def pod_token(kube: Kube, pod: Json, *, audience: str = names.TOKEN_AUDIENCE) -> str:
    """A token like the one that kubelet projects into a pod."""
    metadata = pod["metadata"]
    bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
    request = {"spec": {"audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound}}
    path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/default/token"
    return kube.must("POST", path, request)["status"]["token"]
