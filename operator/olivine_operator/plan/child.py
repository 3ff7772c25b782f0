"""The training child: a ConfigMap with what to train, and an Indexed Job or a JobSet that lives as long as the FineTuneJob trains."""

import hashlib
from typing import Any

from olivine_api import names
from olivine_api.exit_codes import USER_EXIT_CODES, ExitCode
from olivine_api.finetunejob import FineTuneJobSpec, Pods
from olivine_api.status import JobIdentity, Overrides, World
from olivine_operator.plan.live_config import canonical, digest_of, live_data
from olivine_operator.plan.naming import child_labels, child_name, own_labels, owner_reference
from olivine_operator.plan.needs import needs_of_training
from olivine_operator.plan.observed import (
    ANNOTATION_CONFIG_DIGEST,
    ANNOTATION_PODS,
    ANNOTATION_RESOURCES,
    KUEUE_QUEUE_LABEL,
    REPLICATED_JOB,
    JobView,
    Raw,
)
from olivine_operator.plan.outcome import CreateChild
from olivine_operator.plan.pod import CONTAINER, pod_template
from olivine_operator.plan.settings import OperatorSettings
from olivine_operator.plan.wishes import Wishes

# Never reached: the operator alone counts incidents, and ends the child on overrun.
_UNLIMITED = 2_147_483_647
JOBSET_API_VERSION = "jobset.x-k8s.io/v1alpha2"


def build_child(
    job: JobView,
    spec: FineTuneJobSpec,
    ca_certificate: str,
    settings: OperatorSettings,
    *,
    overrides: Overrides | None = None,
    jobsets: bool = False,
) -> CreateChild:
    """All manifests, complete; `jobsets` says whether the cluster has JobSets."""
    live = live_data(ca_certificate=ca_certificate, world=world_of(spec.pods), overrides=overrides)
    several = spec.pods.count > 1
    build = _jobset if several and jobsets else _job
    plain = spec.model_copy(update={"pods": Pods(count=spec.pods.count, processes_per_pod=spec.pods.processes_per_pod)})
    return CreateChild(
        config_map=build_config_map(job, spec, live),
        # The JobSet controller makes a Service of its own.
        service=build_service(job) if several and not jobsets else None,
        job=build(job, spec, live, settings),
        plain=build(job, plain, live, settings),
    )


def world_of(pods: Pods) -> World:
    """The world as the spec asks for it: what a child is made with."""
    return World(pods=pods.count, processes_per_pod=pods.processes_per_pod)


def resources_digest(resources: Raw | None) -> str:
    """Tells one spec.pods.resources from another."""
    return hashlib.sha256(canonical(resources).encode()).hexdigest()[:16]


def size_annotations(wishes: Wishes) -> dict[str, str]:
    """What a child notes of the size that was asked for."""
    return {ANNOTATION_PODS: str(wishes.pods), ANNOTATION_RESOURCES: resources_digest(wishes.resources)}


def _metadata(job: JobView) -> dict[str, Any]:
    return {
        "name": child_name(job),
        "namespace": job.namespace,
        "labels": child_labels(job),
        "ownerReferences": [owner_reference(job)],
    }


def build_config_map(job: JobView, spec: FineTuneJobSpec, live: dict[str, str]) -> dict[str, Any]:
    """The manifest of what to train, for whom, with how many, and whom to trust."""
    identity = JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid, child=child_name(job))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job),
        "data": {
            names.CONFIG_SPEC: canonical(spec.to_json_dict()),
            names.CONFIG_IDENTITY: canonical(identity.to_json_dict()),
            **live,
        },
    }


def build_service(job: JobView) -> dict[str, Any]:
    """Gives each pod a name before it is ready: they meet at the first one."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**_metadata(job), "labels": own_labels(job)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB_UID: job.uid},
            "ports": [{"name": "rendezvous", "port": names.RENDEZVOUS_PORT}],
        },
    }


def _job(job: JobView, spec: FineTuneJobSpec, live: dict[str, str], settings: OperatorSettings) -> dict[str, Any]:
    name = child_name(job)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(job) | {"annotations": _annotations(job, spec, live)},
        "spec": {**_job_spec(job, spec, settings, leader=f"{name}-0.{name}"), "suspend": _queued(job)},
    }


def _jobset(job: JobView, spec: FineTuneJobSpec, live: dict[str, str], settings: OperatorSettings) -> dict[str, Any]:
    name = child_name(job)
    template = {
        # The Job's own labels lead back to the FineTuneJob; the queue's stay with the JobSet.
        "metadata": {"labels": own_labels(job)},
        "spec": _job_spec(job, spec, settings, leader=f"{name}-{REPLICATED_JOB}-0-0.{name}"),
    }
    return {
        "apiVersion": JOBSET_API_VERSION,
        "kind": "JobSet",
        "metadata": _metadata(job) | {"annotations": _annotations(job, spec, live)},
        "spec": {
            "suspend": _queued(job),
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
            "successPolicy": {"operator": "All", "targetReplicatedJobs": [REPLICATED_JOB]},
            # A Job that fails has met a user's exit code: all pods again would end the same way.
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [{"name": REPLICATED_JOB, "replicas": 1, "template": template}],
        },
    }


def _queued(job: JobView) -> bool:
    """Kueue admits by un-suspending."""
    return KUEUE_QUEUE_LABEL in job.labels


def _annotations(job: JobView, spec: FineTuneJobSpec, live: dict[str, str]) -> dict[str, str]:
    return {
        **job.annotations,
        names.ANNOTATION_SPEC_DIGEST: hashlib.sha256(canonical(spec.to_json_dict()).encode()).hexdigest(),
        ANNOTATION_CONFIG_DIGEST: digest_of(live),
        **size_annotations(Wishes.read(job.spec)),
    }


def _job_spec(job: JobView, spec: FineTuneJobSpec, settings: OperatorSettings, *, leader: str) -> dict[str, Any]:
    template = pod_template(job, needs_of_training(spec), settings, config_map=child_name(job), leader=leader)
    return indexed_job_spec(template, pods=spec.pods.count)


def indexed_job_spec(template: dict[str, Any], *, pods: int) -> dict[str, Any]:
    """A Job whose pods are tried again without limit unless a user's exit code ends it: the operator alone counts."""
    return {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimitPerIndex": _UNLIMITED,
        "podReplacementPolicy": "Failed",
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        "podFailurePolicy": {"rules": _failure_rules()},
        "template": template,
    }


def _failure_rules() -> list[dict[str, Any]]:
    """The first that matches holds; what none matches is counted by index, and retried."""

    def on_exit(action: str, codes: tuple[ExitCode, ...]) -> dict[str, Any]:
        values = sorted(int(code) for code in codes)
        return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": values}}

    return [
        on_exit("FailJob", USER_EXIT_CODES),
        on_exit("Ignore", (ExitCode.INTERRUPTED,)),
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
