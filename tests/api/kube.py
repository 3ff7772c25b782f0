"""A real API server as tests use it: raw JSON over HTTPS with the admin's certificate."""

import base64
import json
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

Json = dict[str, Any]

FTJ = "/apis/olivine.dev/v1alpha1/namespaces/{ns}/finetunejobs"
BUNDLES = "/apis/olivine.dev/v1alpha1/namespaces/{ns}/adapterbundles"
JOBS = "/apis/batch/v1/namespaces/{ns}/jobs"
PODS = "/api/v1/namespaces/{ns}/pods"
CONFIG_MAPS = "/api/v1/namespaces/{ns}/configmaps"
SERVICES = "/api/v1/namespaces/{ns}/services"
JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/{ns}/jobsets"
WORKLOADS = "/apis/kueue.x-k8s.io/v1beta2/namespaces/{ns}/workloads"
EVENTS = "/api/v1/namespaces/{ns}/events"


@dataclass(frozen=True)
class Answer:
    """What the API server said."""

    code: int
    body: Json

    @property
    def ok(self) -> bool:
        return self.code < 300

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


class Kube:
    """An admin's client."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        config = YAML(typ="safe", pure=True).load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server = cluster["server"]
        self.ca = _material(cluster, "certificate-authority").decode()
        self._context = ssl.create_default_context(cadata=self.ca)
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder) / "crt", Path(folder) / "key"
            certificate.write_bytes(_material(user, "client-certificate"))
            key.write_bytes(_material(user, "client-key"))
            self._context.load_cert_chain(certificate, key)
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._context)
        )
        self._lock = threading.Lock()

    def request(self, method: str, path: str, body: Json | None = None, content_type: str = "application/json") -> Answer:
        return self.send(method, path, json.dumps(body).encode() if body is not None else None, content_type)

    def table(self, path: str) -> Json:
        """An object as `kubectl get` shows it: values by column."""
        answer = self.send("GET", path, None, "application/json", accept="application/json;as=Table;g=meta.k8s.io;v=v1")
        assert answer.ok, answer.message
        columns = [column["name"] for column in answer.body["columnDefinitions"]]
        return dict(zip(columns, answer.body["rows"][0]["cells"], strict=True))

    def send(self, method: str, path: str, data: bytes | None, content_type: str, accept: str = "application/json") -> Answer:
        """A request with a body of any kind."""
        headers = {"Content-Type": content_type, "Accept": accept}
        request = urllib.request.Request(self.server + path, data=data, method=method, headers=headers)
        try:
            with self._opener.open(request, timeout=30) as response:
                return Answer(response.status, json.loads(response.read()))
        except urllib.error.HTTPError as error:
            text = error.read()
            # A group that is not served is answered in plain text.
            return Answer(error.code, json.loads(text) if text.startswith(b"{") else {"message": text.decode().strip()})

    def must(self, method: str, path: str, body: Json | None = None, content_type: str = "application/json") -> Json:
        answer = self.request(method, path, body, content_type)
        assert answer.ok, f"{method} {path}: {answer.code} {answer.message}"
        return answer.body

    def apply(self, path: str, manifest: Json, *, query: str = "") -> Answer:
        """Server-side apply, as `kubectl apply --server-side` does it."""
        name = manifest["metadata"]["name"]
        return self.request(
            "PATCH", f"{path}/{name}?fieldManager=tester&force=true{query}", manifest, "application/apply-patch+yaml"
        )

    def merge(self, path: str, body: Json) -> Json:
        return self.must("PATCH", path, body, "application/merge-patch+json")


def _material(entry: Json, name: str) -> bytes:
    if f"{name}-data" in entry:
        return base64.b64decode(entry[f"{name}-data"])
    return Path(entry[name]).read_bytes()
