"""A build: its task, and the Job that does it."""

import hashlib
from typing import Any

from olivine_api import names
from olivine_api.adapterbundle import AdapterBundleSpec
from olivine_api.bundle_build import BundleBuild
from olivine_api.finetunejob import Pods
from olivine_api.sources import LocalObjectReference
from olivine_api.status import JobIdentity
from olivine_operator.plan.bundle.gathering import Gathered
from olivine_operator.plan.child import indexed_job_spec
from olivine_operator.plan.live_config import canonical, digest_of
from olivine_operator.plan.naming import child_labels, child_name, owner_reference
from olivine_operator.plan.needs import PodNeeds, claims_of, secret_source
from olivine_operator.plan.observed import ANNOTATION_CONFIG_DIGEST, ANNOTATION_RESOURCES, KUEUE_QUEUE_LABEL, BundleView
from olivine_operator.plan.outcome import CreateChild
from olivine_operator.plan.pod import pod_template
from olivine_operator.plan.settings import OperatorSettings

ARGUMENTS = ("bundle", "pod")


def inputs_digest(spec: AdapterBundleSpec, gathered: Gathered) -> str:
    """Names what a build makes a version from: the same inputs are not built again, however they came to be known."""
    model = gathered.model.to_json_dict() if gathered.model is not None else {}
    inputs = {
        "model": gathered.model_digest or {name: model.get(name) for name in ("uri", "revision")},
        "adapters": sorted(
            (one.adapter.name, one.adapter.digest or one.adapter.uri) for one in gathered.built_in if one.adapter is not None
        ),
        "onnx": spec.onnx.to_json_dict(),
        "verify": spec.verify.to_json_dict(),
        "storage": spec.storage.uri,
        "publish": spec.publish.uri if spec.publish is not None else None,
    }
    return hashlib.sha256(canonical(inputs).encode()).hexdigest()


def means_digest(spec: AdapterBundleSpec) -> str:
    """Tells what the spec gives a builder pod beside its inputs: where that changes, a build under way is made again."""
    members = {"pods", "storage", "model", "publish", "adapters"}
    return digest_of({"means": canonical(spec.model_dump(mode="json", by_alias=True, exclude_none=True, include=members))})


def task_of(spec: AdapterBundleSpec, gathered: Gathered, sequence: int) -> BundleBuild | None:
    """What the builder pod is told; None where no base is known."""
    if gathered.model is None:
        return None
    numbers = {secret.name: number for number, secret in enumerate(_secrets(gathered))}
    adapters = [
        one.adapter.model_copy(update={"credentials": numbers.get(one.secret.name) if one.secret is not None else None})
        for one in gathered.built_in
        if one.adapter is not None
    ]
    return BundleBuild(
        sequence=sequence,
        digest=inputs_digest(spec, gathered),
        model=gathered.model,
        model_digest=gathered.model_digest,
        adapters=adapters,
        onnx=spec.onnx,
        verify=spec.verify,
        storage=spec.storage,
        publish=spec.publish,
        retention=spec.retention,
    )


def job_name(bundle: BundleView, sequence: int) -> str:
    """Each build has a Job of its own: the last one's pods and logs stay until the next."""
    return f"{child_name(bundle)}-{sequence}"


def live_config(ca_certificate: str) -> dict[str, str]:
    """The part of the ConfigMap that changes while a build runs."""
    return {names.CONFIG_CA: ca_certificate}


def build_job(
    bundle: BundleView,
    spec: AdapterBundleSpec,
    gathered: Gathered,
    task: BundleBuild,
    *,
    ca_certificate: str,
    settings: OperatorSettings,
) -> CreateChild:
    """All manifests, complete."""
    name, live = job_name(bundle, task.sequence), live_config(ca_certificate)
    metadata = {
        "name": name,
        "namespace": bundle.namespace,
        "labels": child_labels(bundle),
        "ownerReferences": [owner_reference(bundle)],
    }
    identity = JobIdentity(namespace=bundle.namespace, name=bundle.name, uid=bundle.uid, child=name)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {
            names.CONFIG_SPEC: canonical(task.to_json_dict()),
            names.CONFIG_IDENTITY: canonical(identity.to_json_dict()),
            **live,
        },
    }
    needs = _needs(spec, gathered, task)

    def job(wanted: PodNeeds) -> dict[str, Any]:
        template = pod_template(bundle, wanted, settings, config_map=name)
        noted = {
            ANNOTATION_CONFIG_DIGEST: digest_of(live),
            names.ANNOTATION_SPEC_DIGEST: task.digest,
            ANNOTATION_RESOURCES: means_digest(spec),
        }
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata | {"annotations": {**bundle.annotations, **noted}},
            "spec": {**indexed_job_spec(template, pods=1), "suspend": KUEUE_QUEUE_LABEL in bundle.labels},
        }

    return CreateChild(config_map=config_map, job=job(needs), plain=job(PodNeeds(pods=Pods(), args=ARGUMENTS)))


def _needs(spec: AdapterBundleSpec, gathered: Gathered, task: BundleBuild) -> PodNeeds:
    roles = {"storage": spec.storage, "model": task.model, "publish": spec.publish}
    own = [
        secret_source(names.ENV_SECRET_PREFIXES[role], source.secret_ref)
        for role, source in roles.items()
        if source is not None and source.secret_ref is not None
    ]
    # Optional: one that is missing costs its adapter, not the bundle.
    theirs = [
        secret_source(names.ENV_ADAPTER_PREFIX.format(number=number), secret, optional=True)
        for number, secret in enumerate(_secrets(gathered))
    ]
    read = [task.model.uri, *(adapter.uri for adapter in task.adapters)]
    written = [spec.storage.uri, *((spec.publish.uri,) if spec.publish is not None else ())]
    return PodNeeds(pods=spec.pods, args=ARGUMENTS, secrets=(*own, *theirs), claims=claims_of(read, written))


def _secrets(gathered: Gathered) -> list[LocalObjectReference]:
    """Those of the adapters, each once."""
    return list({one.secret.name: one.secret for one in gathered.built_in if one.secret is not None}.values())
