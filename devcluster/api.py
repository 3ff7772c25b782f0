"""A small client of the API server: enough to ask whether it is ready, and to apply what every cluster holds."""

import http.client
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.console import DevclusterError

Json = dict[str, Any]
_MANAGER = "olivine-devcluster"
_RESOURCES = {
    "Namespace": ("/api/v1", "namespaces"),
    "Secret": ("/api/v1", "secrets"),
    "Service": ("/api/v1", "services"),
    "PersistentVolume": ("/api/v1", "persistentvolumes"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
    "ClusterRole": ("/apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    "ClusterRoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
}


@dataclass(frozen=True)
class ApiClient:
    """Speaks to one API server with the admin's certificate."""

    server: str
    pki: Path

    def get(self, path: str) -> Json | None:
        """The object, or None where there is none."""
        status, body = self._request("GET", path)
        if status == 404:
            return None
        if status != 200:
            raise DevclusterError(f"GET {path} answered {status}: {body[:300]}")
        return json.loads(body)

    def ready(self) -> bool:
        """Whether the API server answers that it is ready; one that cannot be reached is not."""
        try:
            return self._request("GET", "/readyz") == (200, "ok")
        except (OSError, http.client.HTTPException):
            return False

    def apply(self, *objects: Json) -> None:
        """Server-side apply, in the order given."""
        for item in objects:
            prefix, plural = _RESOURCES[item["kind"]]
            meta = item["metadata"]
            scope = f"/namespaces/{meta['namespace']}" if "namespace" in meta else ""
            path = f"{prefix}{scope}/{plural}/{meta['name']}?fieldManager={_MANAGER}&force=true"
            status, body = self._request("PATCH", path, json.dumps(item).encode(), "application/apply-patch+yaml")
            if status not in (200, 201):
                raise DevclusterError(f"applying {item['kind']} {meta['name']} answered {status}: {body[:300]}")

    def _request(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> tuple[int, str]:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(self.pki / "admin.crt", self.pki / "admin.key")
        request = urllib.request.Request(self.server + path, data=body, method=method, headers={"Content-Type": content_type})
        # No proxy: the server is on this machine, whatever the environment says about the outside.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        try:
            with opener.open(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
