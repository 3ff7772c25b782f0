"""Writes a resource's status: one merge patch with what differs, then the Events that tell of it."""

import hashlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

from olivine_api import names
from olivine_api.adapterbundle import AdapterBundleStatus
from olivine_api.status import FineTuneJobStatus
from olivine_operator.plan.observed import JobView
from olivine_operator.plan.outcome import EventDraft
from olivine_operator.runtime.api import ADAPTERBUNDLES, EVENTS, FIELD_MANAGER, FINETUNEJOBS, ApiError, Json, KubeApi
from olivine_operator.runtime.logs import about

_log = logging.getLogger(__name__)
_KINDS = {kind.name: kind for kind in (FINETUNEJOBS, ADAPTERBUNDLES)}
J = TypeVar("J", bound=JobView)


async def write_status(api: KubeApi, job: J, status: FineTuneJobStatus | AdapterBundleStatus) -> J:
    """The resource with its new status. Fails with 409 where it is no longer what the status was made from."""
    before = type(status).model_validate(job.status)
    changes = merge_patch(_dense(before), _dense(status))
    body: Json = {"metadata": {"resourceVersion": job.resource_version}, "status": changes}
    return job.from_raw(await api.patch(_KINDS[job.kind], job.namespace, job.name, body, subresource="status"))


def _dense(status: FineTuneJobStatus | AdapterBundleStatus) -> Json:
    """The status without empty lists and maps."""
    return {key: value for key, value in status.to_json_dict().items() if value not in ([], {})}


def merge_patch(before: Json, after: Json) -> Json:
    """The JSON merge patch (RFC 7386) that leads from one to the other."""
    patch: Json = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            if value != old:
                patch[key] = merge_patch(old, value)
        elif value != old:
            patch[key] = value
    return patch


async def post_events(api: KubeApi, job: JobView, drafts: Sequence[EventDraft]) -> None:
    """Posts Events about a job whose status has just been written."""
    for index, draft in enumerate(drafts):
        try:
            await api.create(EVENTS, job.namespace, _event(job, draft, index))
        except ApiError as error:
            # 409: this write's Event is there. Anything else loses a line of the story, never the story's course.
            if error.code != 409:
                about(_log, job).warning("Event %s was not posted: %s", draft.reason, error.message)


def _event(job: JobView, draft: EventDraft, index: int) -> Json:
    now = datetime.now(UTC)
    # One Event a status write and reason, whoever posts it.
    mark = hashlib.sha256(f"{job.uid} {job.resource_version} {index} {draft.reason}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{job.name}.{mark}", "namespace": job.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": job.kind,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
            "resourceVersion": job.resource_version,
        },
        "type": draft.type,
        "reason": draft.reason,
        "message": draft.message,
        "firstTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lastTimestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "count": 1,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
    }
