"""Carries out what a plan asks of a job's children. Doing it twice does it once."""

import logging

from olivine_api import names
from olivine_api.reasons import Reason
from olivine_operator.plan.observed import (
    ANNOTATION_CONFIG_DIGEST,
    BundleView,
    ChildKind,
    ChildView,
    JobView,
    Obstacle,
    controller_uid,
)
from olivine_operator.plan.outcome import (
    Action,
    CreateChild,
    DeleteChild,
    ExplainNoPod,
    ExplainSlowPod,
    KeepConfigMap,
    KeepService,
    RemoveLostPod,
    ResizeChild,
    SetWorkloadActive,
    SuspendChild,
    WriteConfig,
)
from olivine_operator.runtime.api import CONFIG_MAPS, JOBS, JOBSETS, SERVICES, ApiError, Json, Kind, KubeApi
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.logs import about
from olivine_operator.runtime.obstacles import explain_no_pod, explain_slow_pod, obstacle_of
from olivine_operator.runtime.rescue import remove_lost_pod
from olivine_operator.runtime.workloads import set_active

_log = logging.getLogger(__name__)
_KINDS: dict[ChildKind, Kind] = {"Job": JOBS, "JobSet": JOBSETS}
_CONTAINER_PATH = "/spec/template/spec/containers/0"


class Children:
    """The ConfigMap, the Service and the Job or JobSet of each FineTuneJob."""

    def __init__(self, api: KubeApi, cache: Cache) -> None:
        self._api = api
        self._cache = cache

    async def perform(self, job: JobView, action: Action) -> Obstacle | None:
        """Does it, or says what is in the way."""
        match action:
            case CreateChild():
                return await self._create(job, action)
            case ExplainNoPod():
                return await explain_no_pod(self._api, job, action)
            case ExplainSlowPod():
                return await explain_slow_pod(self._api, job, action)
            case SuspendChild():
                about(_log, job).info("%s %s %s", "suspending" if action.suspend else "resuming", action.kind, action.name)
                await self._patch(job, action.kind, action.name, {"spec": {"suspend": action.suspend}})
            case ResizeChild():
                await self._resize(job, action)
            case WriteConfig():
                await self._write_config(job, action)
            case KeepConfigMap():
                about(_log, job).info("making sure of ConfigMap %s", action.config_map["metadata"]["name"])
                await self._create_one(job, CONFIG_MAPS, action.config_map)
            case KeepService():
                await self._create_one(job, SERVICES, action.service)
            case DeleteChild():
                about(_log, job).info("deleting %s %s", action.kind, action.name)
                if isinstance(job, BundleView):
                    # Each build has one of its own; first, since without its Job nobody would look for it.
                    await self._api.delete(CONFIG_MAPS, job.namespace, action.name)
                await self._api.delete(_KINDS[action.kind], job.namespace, action.name, uid=action.uid)
            case SetWorkloadActive():
                await set_active(self._api, job, action)
            case RemoveLostPod():
                await remove_lost_pod(self._api, job, action)
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
        if action.service is not None:
            service = await self._create_one(job, SERVICES, action.service)
            if isinstance(service, Obstacle):
                return service
        child = await self._create_one(job, _KINDS[action.job["kind"]], action.job, plain=action.plain)
        if isinstance(child, Obstacle):
            return child
        # Known at once, before the watch tells: the next look must not make it again.
        self._cache.keep_child(ChildView.from_raw(child))
        about(_log, job).info("%s %s is there", action.job["kind"], action.job["metadata"]["name"])
        return None

    async def _create_one(self, job: JobView, kind: Kind, manifest: Json, *, plain: Json | None = None) -> Json | Obstacle:
        name = manifest["metadata"]["name"]
        try:
            return await self._api.create(kind, job.namespace, manifest)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return await self._existing(job, kind, name)
            refused_anyway = plain is None or (error.code in (400, 422) and await self._refuses(job, kind, plain))
            return obstacle_of(kind, name, error, users=not refused_anyway)

    async def _refuses(self, job: JobView, kind: Kind, manifest: Json) -> bool:
        """Whether the API server refuses a manifest that asks for nothing of the user's."""
        try:
            await self._api.create(kind, job.namespace, manifest, dry_run=True)
        except ApiError as error:
            return error.reason != "AlreadyExists"
        return False

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

    async def _write_config(self, job: JobView, action: WriteConfig) -> None:
        about(_log, job).info("writing the changing part of ConfigMap %s", action.name)
        try:
            await self._api.patch(CONFIG_MAPS, job.namespace, action.name, {"data": action.data})
        except ApiError as error:
            if error.code != 404:
                raise
            return  # it was deleted; no pod starts without it, and one that waits for it has it made again
        noted = {"metadata": {"annotations": {ANNOTATION_CONFIG_DIGEST: action.digest}}}
        await self._patch(job, action.kind, action.name, noted)

    async def _resize(self, job: JobView, action: ResizeChild) -> None:
        about(_log, job).info("resizing Job %s to %d pods", action.name, action.pods)
        noted = [
            {"op": "add", "path": f"/metadata/annotations/{name.replace('/', '~1')}", "value": value}
            for name, value in action.annotations.items()
        ]
        size = [{"op": "add", "path": f"/spec/{member}", "value": action.pods} for member in ("completions", "parallelism")]
        same_one = {"op": "test", "path": "/metadata/uid", "value": action.uid}
        operations: list[Json] = [same_one, *noted, *size]
        if action.resources is not None:
            operations.append({"op": "add", "path": f"{_CONTAINER_PATH}/resources", "value": action.resources})
        try:
            raw = await self._api.json_patch(JOBS, job.namespace, action.name, operations)
        except ApiError as error:
            if error.code not in (400, 422):
                if error.code == 404:
                    return  # the watch will tell
                raise
            # This API server keeps the template of a suspended Job as it is, or refuses the size: making it anew tells which.
            about(_log, job).info("the Job %s is made anew: %s", action.name, error.message)
            await self._api.delete(JOBS, job.namespace, action.name, uid=action.uid)
            return
        self._cache.keep_child(ChildView.from_raw(raw))

    async def _patch(self, job: JobView, kind: ChildKind, name: str, body: Json) -> None:
        try:
            raw = await self._api.patch(_KINDS[kind], job.namespace, name, body)
        except ApiError as error:
            if error.code != 404:
                raise
            return  # the watch will tell
        self._cache.keep_child(ChildView.from_raw(raw))
