"""The trainer pods: the parts of a pod that a user may choose. The security context is the operator's; there is no raw pod template."""

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from olivine_api import names
from olivine_api.base import ApiModel, Rule
from olivine_api.sources import LocalObjectReference, ObjectName, Uri

# resource.Quantity, as Kubernetes' own schemas have it.
_QUANTITY = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
Quantity = Annotated[str, StringConstraints(pattern=_QUANTITY, max_length=64)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
MountPath = Annotated[str, StringConstraints(pattern=r"^/", min_length=2, max_length=1024)]

# What the operator sets itself: names.py and the launch of the ranks.
_OWN_ENV = r"^(OLIVINE_.*|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|JOB_COMPLETION_INDEX)$"
_OWN_LABELS = r"^(olivine[.]dev/.*|batch[.]kubernetes[.]io/.*|(jobset|kueue)[.].*k8s[.]io/.*|app[.]kubernetes[.]io/managed-by|job-name|controller-uid)$"
_OWN_PATHS = (
    rf"^({names.CONFIG_DIR}|{names.TOKEN_DIR}|{names.SCRATCH_DIR}|{names.CLAIMS_DIR}|{names.MODEL_CACHE_DIR}|/tmp|/dev)(/|$)"
)


class KeyReference(ApiModel):
    """One key of a ConfigMap or Secret."""

    name: ObjectName
    key: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    optional: bool | None = None


class EnvVarSource(ApiModel):
    """Where an environment variable's value comes from."""

    rules = (
        Rule(
            cel="has(self.configMapKeyRef) != has(self.secretKeyRef)",
            holds=lambda s: (s.config_map_key_ref is None) != (s.secret_key_ref is None),
            message="pods.env[].valueFrom needs exactly one of configMapKeyRef and secretKeyRef",
        ),
    )

    config_map_key_ref: KeyReference | None = None
    secret_key_ref: KeyReference | None = None


class EnvVar(ApiModel):
    """One environment variable."""

    rules = (
        Rule(
            cel="!has(self.value) || !has(self.valueFrom)",
            holds=lambda e: e.value is None or e.value_from is None,
            message="an entry of pods.env has value or valueFrom, not both",
        ),
        Rule(
            cel=f"!self.name.matches(r'{_OWN_ENV}')",
            holds=lambda e: not _matches(_OWN_ENV, e.name),
            message="pods.env cannot set OLIVINE_*, RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT or JOB_COMPLETION_INDEX:"
            " the operator does; leave it out",
            field_path=".name",
        ),
    )

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    value_from: EnvVarSource | None = None


class EnvFromReference(ApiModel):
    """A whole ConfigMap or Secret."""

    name: ObjectName
    optional: bool | None = None


class EnvFrom(ApiModel):
    """All keys of a ConfigMap or a Secret as environment variables."""

    rules = (
        Rule(
            cel="has(self.configMapRef) != has(self.secretRef)",
            holds=lambda e: (e.config_map_ref is None) != (e.secret_ref is None),
            message="an entry of pods.envFrom needs exactly one of configMapRef and secretRef",
        ),
        Rule(
            cel="!has(self.prefix) || !self.prefix.startsWith('OLIVINE')",
            holds=lambda e: e.prefix is None or not e.prefix.startswith("OLIVINE"),
            message="pods.envFrom cannot use the prefix OLIVINE: the operator does; choose another",
            field_path=".prefix",
        ),
    )

    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)] | None = None
    config_map_ref: EnvFromReference | None = None
    secret_ref: EnvFromReference | None = None


class Toleration(ApiModel):
    """As in a pod."""

    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class Expression(ApiModel):
    """One requirement on labels, as in a pod."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: Annotated[list[LabelValue], Field(max_length=64)] | None = None


Expressions = Annotated[list[Expression], Field(max_length=32)]
LabelMap = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]


class LabelSelector(ApiModel):
    """Which objects, by their labels."""

    match_labels: LabelMap | None = None
    match_expressions: Expressions | None = None


class NodeSelectorTerm(ApiModel):
    """Requirements on one node; all must hold."""

    match_expressions: Expressions | None = None
    match_fields: Expressions | None = None


class NodeSelector(ApiModel):
    """Terms, of which one must hold."""

    node_selector_terms: Annotated[list[NodeSelectorTerm], Field(min_length=1, max_length=16)]


class PreferredNode(ApiModel):
    """A wish about nodes."""

    weight: Annotated[int, Field(ge=1, le=100)]
    preference: NodeSelectorTerm


class NodeAffinity(ApiModel):
    """Where pods may or should run."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: Annotated[list[PreferredNode], Field(max_length=16)] | None = None


class PodAffinityTerm(ApiModel):
    """Near which pods, and what near means."""

    label_selector: LabelSelector | None = None
    topology_key: LabelKey
    namespaces: Annotated[list[ObjectName], Field(max_length=16)] | None = None
    namespace_selector: LabelSelector | None = None


class WeightedPodAffinityTerm(ApiModel):
    """A wish about neighbours."""

    weight: Annotated[int, Field(ge=1, le=100)]
    pod_affinity_term: PodAffinityTerm


class PodAffinity(ApiModel):
    """Near which pods a pod must or should run; with podAntiAffinity, away from which."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodAffinityTerm], Field(max_length=16)] | None = None
    preferred_during_scheduling_ignored_during_execution: Annotated[list[WeightedPodAffinityTerm], Field(max_length=16)] | None = (
        None
    )


class Affinity(ApiModel):
    """As in a pod."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class TopologySpreadConstraint(ApiModel):
    """As in a pod. Without a labelSelector the operator puts the job's own pods."""

    max_skew: Annotated[int, Field(ge=1)]
    topology_key: LabelKey
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: LabelSelector | None = None
    min_domains: Annotated[int, Field(ge=1)] | None = None
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    node_taints_policy: Literal["Honor", "Ignore"] | None = None
    match_label_keys: Annotated[list[LabelKey], Field(max_length=16)] | None = None


class KeyToPath(ApiModel):
    """Which key becomes which file."""

    key: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    path: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    mode: Annotated[int, Field(ge=0, le=0o777)] | None = None


KeysToPaths = Annotated[list[KeyToPath], Field(max_length=64)]
FileMode = Annotated[int, Field(ge=0, le=0o777)]


class ConfigMapVolume(ApiModel):
    """A ConfigMap as files."""

    name: ObjectName
    items: KeysToPaths | None = None
    default_mode: FileMode | None = None
    optional: bool | None = None


class SecretVolume(ApiModel):
    """A Secret as files."""

    secret_name: ObjectName
    items: KeysToPaths | None = None
    default_mode: FileMode | None = None
    optional: bool | None = None


class EmptyDirVolume(ApiModel):
    """Space that lives as long as the pod."""

    medium: Literal["", "Memory"] | None = None
    size_limit: int | Quantity | None = None


class ClaimVolume(ApiModel):
    """A PersistentVolumeClaim of the namespace."""

    claim_name: ObjectName
    read_only: bool | None = None


class HostPathVolume(ApiModel):
    """A path of the node; only where the administrator's policy allows it."""

    path: MountPath
    type: Literal["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"] | None = None


class Volume(ApiModel):
    """One volume of the pod."""

    rules = (
        Rule(
            cel="(has(self.configMap) ? 1 : 0) + (has(self.secret) ? 1 : 0) + (has(self.emptyDir) ? 1 : 0)"
            " + (has(self.persistentVolumeClaim) ? 1 : 0) + (has(self.hostPath) ? 1 : 0) == 1",
            holds=lambda v: (
                sum(one is not None for one in (v.config_map, v.secret, v.empty_dir, v.persistent_volume_claim, v.host_path)) == 1
            ),
            message="an entry of pods.volumes needs exactly one of configMap, secret, emptyDir, persistentVolumeClaim and hostPath",
        ),
        Rule(
            cel="!self.name.startsWith('olivine-')",
            holds=lambda v: not v.name.startswith("olivine-"),
            message="names of pods.volumes cannot begin with olivine-: the operator's do; choose another",
            field_path=".name",
        ),
    )

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    config_map: ConfigMapVolume | None = None
    secret: SecretVolume | None = None
    empty_dir: EmptyDirVolume | None = None
    persistent_volume_claim: ClaimVolume | None = None
    host_path: HostPathVolume | None = None


class VolumeMount(ApiModel):
    """Where a volume stands in the container."""

    rules = (
        Rule(
            cel=f"!self.mountPath.matches(r'{_OWN_PATHS}') && !self.mountPath.contains('..')",
            holds=lambda m: not _matches(_OWN_PATHS, m.mount_path) and ".." not in m.mount_path,
            message=f"pods.volumeMounts cannot use {names.CONFIG_DIR}, {names.TOKEN_DIR}, {names.SCRATCH_DIR}, {names.CLAIMS_DIR},"
            f" {names.MODEL_CACHE_DIR}, /tmp or /dev: the operator does; choose another mountPath",
            field_path=".mountPath",
        ),
    )

    name: Annotated[str, StringConstraints(max_length=63)]
    mount_path: MountPath
    sub_path: Annotated[str, StringConstraints(max_length=1024)] | None = None
    read_only: bool | None = None


ResourceList = Annotated[dict[str, int | Quantity], Field(max_length=16)]


class Resources(ApiModel):
    """As in a pod: cpu, memory, nvidia.com/gpu, …"""

    limits: ResourceList | None = None
    requests: ResourceList | None = None


class Pods(ApiModel):
    """The trainer pods. Defaults come from the chart."""

    rules = (
        Rule(
            cel="!has(self.volumeMounts) || self.volumeMounts.all(m, has(self.volumes) && self.volumes.exists(v, v.name == m.name))",
            holds=lambda p: {m.name for m in p.volume_mounts or ()} <= {v.name for v in p.volumes or ()},
            message="pods.volumeMounts names a volume that pods.volumes does not have: add it, or correct the name",
            field_path=".volumeMounts",
        ),
        Rule(
            cel=f"!has(self.labels) || !self.labels.exists(k, k.matches(r'{_OWN_LABELS}'))",
            holds=lambda p: not any(_matches(_OWN_LABELS, key) for key in p.labels or ()),
            message="pods.labels cannot set labels of olivine.dev, of Jobs, JobSets or Kueue, or app.kubernetes.io/managed-by: leave them out;"
            " kueue.x-k8s.io and olivine.dev labels belong on the FineTuneJob itself",
            field_path=".labels",
        ),
        Rule(
            cel="!has(self.annotations) || !self.annotations.exists(k, k.startsWith('olivine.dev/'))",
            holds=lambda p: not any(key.startswith("olivine.dev/") for key in p.annotations or ()),
            message="pods.annotations cannot set annotations of olivine.dev: leave them out",
            field_path=".annotations",
        ),
    )

    count: Annotated[int, Field(ge=1, le=1024)] = 1
    """Trainer pods that train together. May change while the job is suspended."""
    processes_per_pod: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes in each pod: one a device."""
    resources: Resources | None = None
    """May change while the job is suspended."""
    image: Uri | None = None
    """The trainer's image. Default: the chart's."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """Default: the chart's."""
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=16)] | None = None
    """Secrets for the image's registry; instead of the chart's."""
    service_account_name: ObjectName | None = None
    """Whose cloud identity the pods have; no token of it is mounted."""
    priority_class_name: ObjectName | None = None
    """Which pods may push others out."""
    node_selector: LabelMap | None = None
    """Labels that a node must have, beside the chart's."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    """Taints of nodes that do not matter, beside the chart's."""
    affinity: Affinity | None = None
    """Near what the pods run, as in a pod."""
    topology_spread_constraints: Annotated[list[TopologySpreadConstraint], Field(max_length=16)] | None = None
    """How the pods spread over nodes or zones, as in a pod."""
    runtime_class_name: ObjectName | None = None
    """The container runtime, e.g. nvidia."""
    scheduler_name: ObjectName | None = None
    """A scheduler other than the cluster's default."""
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86_400)] = 120
    """Time for the last checkpoint after SIGTERM, seconds."""
    env: Annotated[list[EnvVar], Field(max_length=64)] | None = None
    """Environment variables, beside the chart's; of equal names these win."""
    env_from: Annotated[list[EnvFrom], Field(max_length=16)] | None = None
    """Whole ConfigMaps and Secrets as environment variables."""
    volumes: Annotated[list[Volume], Field(max_length=32)] | None = None
    """Further volumes."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32)] | None = None
    """Where those volumes stand."""
    shared_memory: int | Quantity | None = None
    """Size of /dev/shm, counted against the memory limit, e.g. 2Gi. Default: the chart's."""
    labels: LabelMap | None = None
    """Labels of the pods."""
    annotations: Annotated[dict[LabelKey, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=32)] | None = None
    """Annotations of the pods."""


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None
