"""Carries out what a plan asks of a job's children. Doing it twice does it once."""

import logging
import re

from olivine_api import names
from olivine_api.reasons import Reason
from olivine_operator.plan.observed import ANNOTATION_CA_DIGEST, ChildView, JobView, Obstacle, controller_uid
from olivine_operator.plan.outcome import Action, CreateChild, DeleteChild, KeepConfigMap, RefreshCa, SuspendChild
from olivine_operator.runtime.api import CONFIG_MAPS, JOBS, ApiError, Json, Kind, KubeApi
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.logs import about

_log = logging.getLogger(__name__)


class Children:
    """The ConfigMap and the Job of each FineTuneJob."""

    def __init__(self, api: KubeApi, cache: Cache) -> None:
        self._api = api
        self._cache = cache

    async def perform(self, job: JobView, action: Action) -> Obstacle | None:
        """Does it, or says what is in the way."""
        match action:
            case CreateChild():
                return await self._create(job, action)
            case SuspendChild():
                await self._suspend(job, action)
            case RefreshCa():
                await self._refresh_ca(job, action)
            case KeepConfigMap():
                about(_log, job).info("making sure of ConfigMap %s", action.config_map["metadata"]["name"])
                await self._create_one(job, CONFIG_MAPS, action.config_map)
            case DeleteChild():
                about(_log, job).info("deleting Job %s", action.name)
                await self._api.delete(JOBS, job.namespace, action.name, uid=action.uid)
        return None

    async def _create(self, job: JobView, action: CreateChild) -> Obstacle | None:
        # The ConfigMap first: a pod that finds none waits for a minute before it looks again.
        config_map = await self._create_one(job, CONFIG_MAPS, action.config_map)
        if isinstance(config_map, Obstacle):
            return config_map
        if config_map.get("data") != action.config_map["data"]:
            await self._api.patch(
                CONFIG_MAPS, job.namespace, action.config_map["metadata"]["name"], {"data": action.config_map["data"]}
            )
        child = await self._create_one(job, JOBS, action.job)
        if isinstance(child, Obstacle):
            return child
        # Known at once, before the watch tells: the next look must not make it again.
        self._cache.children.put(ChildView.from_raw(child))
        about(_log, job).info("Job %s is there", action.job["metadata"]["name"])
        return None

    async def _create_one(self, job: JobView, kind: Kind, manifest: Json) -> Json | Obstacle:
        name = manifest["metadata"]["name"]
        try:
            return await self._api.create(kind, job.namespace, manifest)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return await self._existing(job, kind, name)
            return obstacle_of(job, kind, name, error)

    async def _existing(self, job: JobView, kind: Kind, name: str) -> Json | Obstacle:
        """The object that has the name already: ours from an earlier try, or another's, which is never adopted."""
        found = await self._api.get(kind, job.namespace, name)
        metadata = found["metadata"]
        if controller_uid(metadata) != job.uid:
            message = f"the {kind.name} {name} belongs to something else; the job waits until it is deleted"
            return Obstacle(reason=Reason.NAME_TAKEN, message=message)
        if "deletionTimestamp" in metadata:
            raise ApiError(409, "Conflict", f"the {kind.name} {name} is still being deleted", retry_after=1)
        if names.LABEL_JOB not in metadata.get("labels", {}):
            message = f"the {kind.name} {name} has lost its label {names.LABEL_JOB}; put it back, or delete the {kind.name}"
            return Obstacle(reason=Reason.NAME_TAKEN, message=message)
        return found

    async def _refresh_ca(self, job: JobView, action: RefreshCa) -> None:
        about(_log, job).info("giving the operator's CA certificate to Job %s", action.name)
        try:
            await self._api.patch(CONFIG_MAPS, job.namespace, action.name, {"data": {names.CONFIG_CA: action.certificate}})
            noted = {"metadata": {"annotations": {ANNOTATION_CA_DIGEST: action.digest}}}
            raw = await self._api.patch(JOBS, job.namespace, action.name, noted)
        except ApiError as error:
            if error.code != 404:
                raise
            return  # one of them was deleted: without both no pod runs
        self._cache.children.put(ChildView.from_raw(raw))

    async def _suspend(self, job: JobView, action: SuspendChild) -> None:
        about(_log, job).info("%s Job %s", "suspending" if action.suspend else "resuming", action.name)
        try:
            raw = await self._api.patch(JOBS, job.namespace, action.name, {"spec": {"suspend": action.suspend}})
        except ApiError as error:
            if error.code != 404:
                raise
            return  # the watch will tell
        self._cache.children.put(ChildView.from_raw(raw))


def obstacle_of(job: JobView, kind: Kind, name: str, error: ApiError) -> Obstacle:
    """What a refusal means; raises what another try, or the job's own end, will settle."""
    if error.code in (400, 422):
        refused = f"the API server refused the {kind.name} {name}: {error.message}"
        if _is_from_spec(job, error):
            # The spec is fixed from here on: the same manifest would be refused for ever.
            return Obstacle(reason=Reason.INVALID_SPEC, message=refused, permanent=True)
        message = (
            "nothing that spec.pods says is refused: the administrator has to correct the chart's settings (trainer.podDefaults) "
            f"or a policy of the cluster, and the job then starts by itself; {refused}"
        )
        return Obstacle(reason=Reason.CHILD_REFUSED, message=message)
    if error.code >= 500 and "failed calling webhook" in error.message:
        return Obstacle(reason=Reason.CHILD_REFUSED, message=f"the {kind.name} {name} is tried again: {error.message}")
    if error.code == 403 and "being terminated" not in error.message:
        return Obstacle(reason=Reason.CHILD_REFUSED, message=f"the {kind.name} {name} was refused: {error.message}")
    raise error


def _is_from_spec(job: JobView, error: ApiError) -> bool:
    """Whether the refused field is one that spec.pods sets; where the administrator sets it too, the user is asked first."""
    members = job.spec.get("pods") or {}
    if error.code == 400:
        # The CRD knows every type but quantities, and these are refused without their path.
        return "resources" in members and "quantities must match" in error.message
    return any(re.search(rf"\.{member}\b", error.message) for member in members)
