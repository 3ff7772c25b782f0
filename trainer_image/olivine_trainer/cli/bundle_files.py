"""The build of a builder pod: from the files that the operator mounts, and from PID 1 to its child."""

from pathlib import Path

from olivine_api import names
from olivine_api.bundle_build import BundleBuild
from olivine_api.reasons import Reason
from olivine_api.status import JobIdentity
from olivine_trainer.errors import ConfigurationError

MEMORY_ADVICE = "raise pods.resources.limits.memory, or choose a smaller model"


def read_build(folder: Path = Path(names.CONFIG_DIR)) -> tuple[BundleBuild, JobIdentity]:
    """Raises ConfigurationError where nothing is mounted or it is not valid."""
    try:
        build = BundleBuild.model_validate_json((folder / names.CONFIG_SPEC).read_bytes())
        return build, JobIdentity.model_validate_json((folder / names.CONFIG_IDENTITY).read_bytes())
    except FileNotFoundError as error:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"there is no {error.filename}: outside a pod write olivine-train bundle build --spec FILE --out DIR",
        ) from None
    except ValueError as error:
        raise ConfigurationError(Reason.INVALID_SPEC, f"the mounted build is unreadable: {error}") from None


def write_build(folder: Path, build: BundleBuild, identity: JobIdentity) -> None:
    """For the child, under the same names."""
    (folder / names.CONFIG_SPEC).write_text(build.model_dump_json(by_alias=True, exclude_none=True))
    (folder / names.CONFIG_IDENTITY).write_text(identity.model_dump_json(by_alias=True))
