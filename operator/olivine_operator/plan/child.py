"""The training child: a ConfigMap with what to train, and an Indexed Job that lives as long as the FineTuneJob trains."""

import hashlib
import json
from typing import Any

from olivine_api import names
from olivine_api.exit_codes import USER_EXIT_CODES, ExitCode
from olivine_api.finetunejob import FineTuneJobSpec
from olivine_api.status import JobIdentity
from olivine_operator.plan.naming import child_labels, child_name, owner_reference
from olivine_operator.plan.observed import ANNOTATION_CA_DIGEST, KUEUE_QUEUE_LABEL, JobView
from olivine_operator.plan.outcome import CreateChild
from olivine_operator.plan.pod import CONTAINER, pod_template
from olivine_operator.plan.settings import OperatorSettings

# Never reached: the operator alone counts incidents, and ends the child on overrun.
_UNLIMITED = 2_147_483_647


def build_child(job: JobView, spec: FineTuneJobSpec, ca_certificate: str, settings: OperatorSettings) -> CreateChild:
    """Both manifests, complete."""
    return CreateChild(
        config_map=build_config_map(job, spec, ca_certificate),
        job=_job(job, spec, ca_certificate, settings),
    )


def ca_digest(certificate: str) -> str:
    """Tells one CA certificate from another."""
    return hashlib.sha256(certificate.encode()).hexdigest()[:16]


def _spec_json(spec: FineTuneJobSpec) -> str:
    return _canonical(spec.to_json_dict())


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _metadata(job: JobView) -> dict[str, Any]:
    return {
        "name": child_name(job),
        "namespace": job.namespace,
        "labels": child_labels(job),
        "ownerReferences": [owner_reference(job)],
    }


def build_config_map(job: JobView, spec: FineTuneJobSpec, ca_certificate: str) -> dict[str, Any]:
    """The manifest of what to train, for whom, and whom to trust."""
    identity = JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid, child=child_name(job))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job),
        "data": {
            names.CONFIG_SPEC: _spec_json(spec),
            names.CONFIG_IDENTITY: _canonical(identity.to_json_dict()),
            names.CONFIG_CA: ca_certificate,
        },
    }


def _job(job: JobView, spec: FineTuneJobSpec, ca_certificate: str, settings: OperatorSettings) -> dict[str, Any]:
    metadata = _metadata(job)
    metadata["annotations"] = {
        names.ANNOTATION_SPEC_DIGEST: hashlib.sha256(_spec_json(spec).encode()).hexdigest(),
        ANNOTATION_CA_DIGEST: ca_digest(ca_certificate),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": 1,
            "parallelism": 1,
            "backoffLimitPerIndex": _UNLIMITED,
            "podReplacementPolicy": "Failed",
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "podFailurePolicy": {"rules": _failure_rules()},
            # Kueue admits by un-suspending.
            "suspend": KUEUE_QUEUE_LABEL in job.labels,
            "template": pod_template(job, spec, settings),
        },
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
