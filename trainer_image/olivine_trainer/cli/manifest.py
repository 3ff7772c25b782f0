"""The job: from the files that the operator mounts, or from a manifest."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from olivine_api import names
from olivine_api.base import StatusModel
from olivine_api.finetunejob import FineTuneJobSpec, own_classes
from olivine_api.reasons import Reason
from olivine_api.status import JobIdentity, Overrides, World
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.job import Job, parse_checked, spec_digest
from olivine_trainer.plugins import file_of

_DEFAULT_NAMESPACE = "default"
_M = TypeVar("_M", bound=StatusModel)


def read_mounted_job(folder: Path = Path(names.CONFIG_DIR)) -> Job:
    """The job of this pod. Raises ConfigurationError where nothing is mounted or it is not valid."""
    try:
        spec = json.loads((folder / names.CONFIG_SPEC).read_text())
        identity = JobIdentity.model_validate_json((folder / names.CONFIG_IDENTITY).read_text())
    except FileNotFoundError as error:
        raise ConfigurationError(
            Reason.INVALID_SPEC, f"there is no {error.filename}: outside a pod write olivine-train --spec FILE"
        ) from None
    except ValueError as error:
        raise ConfigurationError(Reason.INVALID_SPEC, f"the mounted job is unreadable: {error}") from None
    parsed = parse_checked(spec, names.CONFIG_SPEC)
    return Job(spec=parsed, identity=identity, plugins=_mounted_plugins(parsed, Path(names.PLUGINS_DIR)))


def _mounted_plugins(spec: FineTuneJobSpec, folder: Path) -> dict[str, str]:
    """The files that the specification names, but for those that are not there; who imports them tells."""
    wanted = {file_of(plugin): folder / file_of(plugin) for _, plugin in own_classes(spec)}
    return {file: path.read_text() for file, path in wanted.items() if path.is_file()}


def read_mounted_world(folder: Path = Path(names.CONFIG_DIR)) -> World:
    """How many pods and processes there are; one of each where nobody says."""
    return _read_mounted(folder / names.CONFIG_WORLD, World) or World()


def read_mounted_overrides(folder: Path = Path(names.CONFIG_DIR)) -> Overrides | None:
    """What the operator changed to heal the job; the kubelet refreshes it under a running pod."""
    return _read_mounted(folder / names.CONFIG_OVERRIDES, Overrides)


@dataclass(frozen=True)
class Surroundings:
    """What may differ each time the workers start. Both may raise ConfigurationError."""

    world: Callable[[], World]
    overrides: Callable[[], Overrides | None]


MOUNTED = Surroundings(read_mounted_world, read_mounted_overrides)


def bare(job: Job) -> Surroundings:
    """Of `olivine-train --spec`: one pod's worth of processes on this machine."""
    world = World(processes_per_pod=job.spec.pods.processes_per_pod)
    return Surroundings(world=lambda: world, overrides=lambda: None)


def _read_mounted(path: Path, model: type[_M]) -> _M | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigurationError(Reason.INVALID_SPEC, f"the mounted {path.name} is unreadable: {error}") from None


def read_manifest(path: Path, *, namespace: str | None, name: str | None, uid: str | None) -> Job:
    """A manifest: a whole FineTuneJob or its spec alone, with the ConfigMaps of its plug-ins.

    Raises ConfigurationError naming what is wrong with it.
    """
    raw, config_maps = _job_of(_load_yaml(path), path)
    metadata: dict[str, Any] = {}
    if isinstance(raw, dict) and "kind" in raw:
        if raw["kind"] != names.FINETUNEJOB_KIND or raw.get("apiVersion") != names.API_VERSION:
            raise ConfigurationError(
                Reason.INVALID_SPEC,
                f"{path.name} is a {raw.get('apiVersion')} {raw['kind']}: it must be a {names.API_VERSION} {names.FINETUNEJOB_KIND}",
            )
        metadata = raw.get("metadata") or {}
        raw = raw.get("spec")
    spec = parse_checked(raw, path.name)
    identity = JobIdentity(
        namespace=namespace or metadata.get("namespace") or _DEFAULT_NAMESPACE,
        name=name or metadata.get("name") or path.stem,
        uid=uid or _local_uid(spec),
        child="",
    )
    wanted = {file_of(plugin) for _, plugin in own_classes(spec)}
    return Job(spec=spec, identity=identity, plugins={file: config_maps[file] for file in sorted(wanted & set(config_maps))})


def load_one(path: Path) -> Any:
    """The one document of a YAML or JSON file. Raises ConfigurationError where there are more, or none."""
    documents = _load_yaml(path)
    if len(documents) != 1:
        raise ConfigurationError(Reason.INVALID_SPEC, f"{path.name} holds {len(documents)} documents: give exactly one")
    return documents[0]


def _job_of(documents: list[Any], path: Path) -> tuple[Any, dict[str, str]]:
    """The one document that is no ConfigMap, and the ConfigMaps' files by `<ConfigMap>/<key>`."""
    files: dict[str, str] = {}
    jobs: list[Any] = []
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "ConfigMap":
            name = (document.get("metadata") or {}).get("name")
            files |= {f"{name}/{key}": str(value) for key, value in (document.get("data") or {}).items()}
        else:
            jobs.append(document)
    if len(jobs) != 1:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"{path.name} holds {len(jobs)} documents: give exactly one FineTuneJob, beside it ConfigMaps of its plug-ins only",
        )
    return jobs[0], files


def _local_uid(spec: FineTuneJobSpec) -> str:
    """The same specification goes on where it stopped; a changed one begins anew."""
    return f"local-{spec_digest(spec)[:12]}"


def _load_yaml(path: Path) -> list[Any]:
    """YAML 1.2, as kubectl reads it: 1e-4 is a number and yes a string."""
    from ruamel.yaml import YAML  # noqa: PLC0415  (an extra: pods have no need of it)
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    try:
        documents: list[Any] = [
            document for document in YAML(typ="safe", pure=True).load_all(path.read_text()) if document is not None
        ]
    except OSError as error:
        raise ConfigurationError(Reason.INVALID_SPEC, f"{path} cannot be read: {error.strerror}") from None
    except YAMLError as error:
        raise ConfigurationError(Reason.INVALID_SPEC, f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    return documents
