"""The API server, as raw JSON over the official client's connection pool: its generated models cost more than they give."""

import asyncio
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from olivine_api import names
from olivine_operator.runtime.metrics import Metrics

Json = dict[str, Any]

FIELD_MANAGER = "olivine-operator"
_TIMEOUT_SECONDS = 15.0
_CONNECTIONS = 64
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


class ApiError(Exception):
    """The API server refused a request, or could not be reached (code 0)."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may well succeed later."""
        return self.code in (0, 408, 409, 429) or self.code >= 500


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of objects and where they live."""

    name: str
    prefix: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of an object, or of the collection."""
        parts = [self.prefix]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part is not None]
        return "/".join(parts)


FINETUNEJOBS = Kind(name="FineTuneJob", prefix=f"/apis/{names.API_VERSION}", plural=names.FINETUNEJOB_PLURAL)
ADAPTERBUNDLES = Kind(name="AdapterBundle", prefix=f"/apis/{names.API_VERSION}", plural=names.ADAPTERBUNDLE_PLURAL)
JOBS = Kind(name="Job", prefix="/apis/batch/v1", plural="jobs")
PODS = Kind(name="Pod", prefix="/api/v1", plural="pods")
CONFIG_MAPS = Kind(name="ConfigMap", prefix="/api/v1", plural="configmaps")
SECRETS = Kind(name="Secret", prefix="/api/v1", plural="secrets")
SERVICES = Kind(name="Service", prefix="/api/v1", plural="services")
# Kinds that a cluster may lack.
JOBSETS = Kind(name="JobSet", prefix="/apis/jobset.x-k8s.io/v1alpha2", plural="jobsets")
WORKLOADS = Kind(name="Workload", prefix="/apis/kueue.x-k8s.io/v1beta2", plural="workloads")
OLD_WORKLOADS = Kind(name="Workload", prefix="/apis/kueue.x-k8s.io/v1beta1", plural="workloads")
EVENTS = Kind(name="Event", prefix="/api/v1", plural="events")
TOKEN_REVIEWS = Kind(name="TokenReview", prefix="/apis/authentication.k8s.io/v1", plural="tokenreviews")
LEASES = Kind(name="Lease", prefix="/apis/coordination.k8s.io/v1", plural="leases")
NAMESPACES = Kind(name="Namespace", prefix="/api/v1", plural="namespaces")

# What a replica may write that does not lead: its bid for the lead, questions, and the certificate that all agree on.
_WRITTEN_BY_ALL = frozenset({LEASES, TOKEN_REVIEWS, SECRETS})


class KubeApi:
    """Requests to the API server; every failure is an ApiError."""

    def __init__(self, configuration: Configuration, metrics: Metrics) -> None:
        configuration.connection_pool_maxsize = _CONNECTIONS
        # Retries are the work queue's business: it knows what else is to be done.
        configuration.retries = None
        self._client = ApiClient(configuration)
        self._metrics = metrics
        self._may_write_for: Callable[[], float] = lambda: math.inf

    def fence(self, remaining: Callable[[], float]) -> None:
        """From now on nothing is written but in the seconds that remain: no request outlasts them."""
        self._may_write_for = remaining

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Json:
        """One object."""
        return await self.request("GET", kind, kind.path(namespace, name))

    async def list(self, kind: Kind, *, label: str | None = None, token: str | None = None, limit: int = 1000) -> Json:
        """One page of a kind's objects in all namespaces, metadata only."""
        query = {"limit": str(limit), "labelSelector": label, "continue": token}
        return await self.request("GET", kind, kind.path(), verb="LIST", query=query, accept=METADATA_ONLY)

    async def discovers(self, kind: Kind) -> bool:
        """Whether API discovery tells of a kind of a named group: it may lag behind what is served."""
        groups = (await self.request("GET", kind, "/apis"))["groups"]
        if kind.prefix not in (f"/apis/{version['groupVersion']}" for group in groups for version in group["versions"]):
            return False
        resources = (await self.request("GET", kind, kind.prefix))["resources"]
        return any(item["name"] == kind.plural for item in resources)

    async def select(self, kind: Kind, namespace: str, fields: dict[str, str]) -> Sequence[Json]:
        """The objects of a namespace whose fields have these values."""
        query: dict[str, str | None] = {"fieldSelector": ",".join(f"{name}={value}" for name, value in fields.items())}
        return (await self.request("GET", kind, kind.path(namespace), verb="LIST", query=query))["items"]

    async def create(self, kind: Kind, namespace: str | None, body: Json, *, dry_run: bool = False) -> Json:
        """Makes an object; a dry run only asks whether it would be made."""
        query = {"fieldManager": FIELD_MANAGER, "dryRun": "All" if dry_run else None}
        return await self.request("POST", kind, kind.path(namespace), body=body, query=query)

    async def patch(self, kind: Kind, namespace: str, name: str, body: Json, *, subresource: str | None = None) -> Json:
        """Merges into an object; a resourceVersion in the body is a precondition."""
        path = kind.path(namespace, name, subresource)
        return await self.request("PATCH", kind, path, body=body, query={"fieldManager": FIELD_MANAGER}, content_type=MERGE_PATCH)

    async def json_patch(self, kind: Kind, namespace: str, name: str, operations: Sequence[Json]) -> Json:
        """Changes exactly these places of an object."""
        path, query = kind.path(namespace, name), {"fieldManager": FIELD_MANAGER}
        return await self.request("PATCH", kind, path, body=operations, query=query, content_type=JSON_PATCH)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None, by_force: bool = False) -> None:
        """Deletes the object, with a uid exactly this one, its dependents in the background; one that is gone already is fine."""
        body: Json = {"propagationPolicy": "Background"} | ({"preconditions": {"uid": uid}} if uid is not None else {})
        if by_force:
            body["gracePeriodSeconds"] = 0
        try:
            await self.request("DELETE", kind, kind.path(namespace, name), body=body)
        except ApiError as error:
            # 409: the name belongs to another object by now.
            if error.code not in (404, 409):
                raise

    async def request(
        self,
        method: str,
        kind: Kind,
        path: str,
        *,
        body: Json | Sequence[Json] | None = None,
        query: Mapping[str, str | None] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        verb: str | None = None,
    ) -> Json:
        """Any request with a JSON answer."""
        seconds = self._seconds_for(method, kind)
        headers = {"Accept": accept, "Content-Type": content_type}
        token = await self._client.configuration.get_api_key_with_prefix("BearerToken")
        if token:
            headers["Authorization"] = token
        present = {key: value for key, value in (query or {}).items() if value is not None}
        url = f"{self._client.configuration.host}{path}" + (f"?{urlencode(present)}" if present else "")
        count = self._metrics.api_requests.labels
        try:
            response = await self._client.rest_client.request(method, url, headers=headers, body=body, _request_timeout=seconds)
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            count(verb or method, kind.name, "0").inc()
            raise ApiError(0, "Unreachable", f"the API server does not answer: {error or type(error).__name__}") from error
        count(verb or method, kind.name, str(response.status)).inc()
        if response.status >= 400:
            raise _error(response.status, data, response.headers.get("Retry-After"))
        # Decoding a long list blocks the loop noticeably: in a thread.
        return json.loads(data) if len(data) < 1 << 20 else await asyncio.to_thread(json.loads, data)

    def _seconds_for(self, method: str, kind: Kind) -> float:
        if method == "GET" or kind in _WRITTEN_BY_ALL:
            return _TIMEOUT_SECONDS
        seconds = min(_TIMEOUT_SECONDS, self._may_write_for())
        if seconds <= 0:
            raise ApiError(0, "NotLeading", "this replica does not lead: it writes nothing")
        return seconds


def _error(code: int, data: bytes, retry_after: str | None) -> ApiError:
    try:
        status: Json = json.loads(data)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", data[:200].decode(errors="replace")
    seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    return ApiError(code, reason, message or f"HTTP {code}", seconds)


async def connect(metrics: Metrics) -> KubeApi:
    """The API server of the cluster that the operator runs in, or of KUBECONFIG."""
    configuration = Configuration()
    if os.environ.get("KUBECONFIG") or not Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists():
        await config.load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    return KubeApi(configuration, metrics)
