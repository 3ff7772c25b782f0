"""What the administrator decides: the chart writes it, the operator reads it once at its start."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from olivine_api.base import ApiModel
from olivine_api.finetunejob import LocalObjectReference

# Admin's pod fields pass through as they are: the API server judges them, as it would in a Deployment.
RawObject = dict[str, Any]


class PodDefaults(ApiModel):
    """What every trainer pod gets, unless its spec says otherwise."""

    volumes: list[RawObject] = []
    volume_mounts: list[RawObject] = []
    env: list[RawObject] = []
    resources: RawObject = {}
    node_selector: dict[str, str] = {}
    tolerations: list[RawObject] = []
    image_pull_secrets: list[LocalObjectReference] = []
    affinity: RawObject = {}
    topology_spread_constraints: list[RawObject] = []
    priority_class_name: str | None = None
    runtime_class_name: str | None = None
    scheduler_name: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class TrainerSettings(ApiModel):
    """The trainer's image and pods."""

    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pod_defaults: PodDefaults = PodDefaults()
    shared_memory: Annotated[str, StringConstraints(pattern=r"^[0-9]+([.][0-9]+)?([kMGTPE]|[KMGTPE]i)?$")] = "256Mi"
    """Size of /dev/shm; it counts against the memory limit as far as it is used."""


Globs = Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=1024)]], Field(max_length=256)]


class Policy(ApiModel):
    """What users may ask for. A list that is left out allows everything, an empty one nothing."""

    allow_file_uris: bool = False
    """file:// URIs: they read and write the trainer pod's own file system."""
    allow_trust_remote_code: bool = False
    """Python code that comes with a model."""
    allow_host_path: bool = False
    """hostPath volumes."""
    allow_plugins: bool = False
    """Losses and metrics from ConfigMaps."""
    secret_names: Globs | None = None
    """Which Secrets a job may name, anywhere in its spec; * stands for any characters."""
    service_account_names: Globs | None = None
    """As which ServiceAccounts pods may run; a job that names none runs as default."""
    storage_prefixes: Globs | None = None
    """Where checkpoints and artifacts may go: s3://bucket/prefix, without wildcards."""
    images: Globs | None = None
    """Which images pods may run, beside the chart's."""


class LabelRequirement(ApiModel):
    """As in a Kubernetes label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []


class NamespaceSelector(ApiModel):
    """Namespaces by their labels; an empty one matches all. kubernetes.io/metadata.name is a namespace's name."""

    match_labels: dict[str, str] = {}
    match_expressions: list[LabelRequirement] = []


class NamespacePolicy(Policy):
    """The policy of some namespaces. Nothing of the default policy is in it."""

    namespace_selector: NamespaceSelector


class StatusEndpoint(ApiModel):
    """Where trainers report."""

    service: str = "olivine-status"
    """Name of the Service, and with it of the server in its certificate."""
    service_port: int = 443
    port: int = 8443
    """Where the operator listens."""
    address: str = "0.0.0.0"
    ca_overlap_seconds: Annotated[float, Field(ge=1)] = 7 * 86_400
    """How long pods are told of the next CA before it is used, and of the last one after."""
    certificate_check_seconds: Annotated[float, Field(ge=0.1)] = 3600
    """How often the certificate is looked after; several times within the overlap."""


class OperatorSettings(ApiModel):
    """Everything that is configurable."""

    namespace: str
    """The operator's own."""
    trainer: TrainerSettings
    policy: Policy = Policy()
    """Of namespaces that none of `policies` selects."""
    policies: list[NamespacePolicy] = []
    """The first that selects a namespace holds there."""
    status_endpoint: StatusEndpoint = StatusEndpoint()
    http_port: int = 8080
    """Metrics and probes, plain HTTP."""
    http_address: str = "0.0.0.0"
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    status_interval_seconds: Annotated[float, Field(ge=1, le=600)] = 5
    """At most one progress write per job in so many seconds."""
    resync_seconds: Annotated[float, Field(ge=5)] = 600
    """How often the cache is compared with the API server."""
    lost_pod_timeout_seconds: Annotated[float, Field(ge=1, le=86_400)] = 120
    """How long past its grace period a pod may stay on a node that does not answer before the job says NodeLost."""
    remove_lost_pods: bool = False
    """Whether such a pod is then declared failed and removed by force: it may still run, and fencing has to stop it."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def status_host(self) -> str:
        """The DNS name of the status endpoint."""
        return f"{self.status_endpoint.service}.{self.namespace}.svc"

    @property
    def status_url(self) -> str:
        """The status endpoint as trainer pods see it."""
        port = self.status_endpoint.service_port
        return f"https://{self.status_host}" + ("" if port == 443 else f":{port}")
