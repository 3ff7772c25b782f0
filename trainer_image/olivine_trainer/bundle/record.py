"""builds/<inputs>.json: what a finished build came to, for a pod of the same build that comes later."""

from olivine_api.base import StatusModel
from olivine_api.bundle_build import BuildResult, BundleBuild
from olivine_trainer.bundle.layout import build_key
from olivine_trainer.storage.store import Store


class BuildRecord(StatusModel):
    """The end of one build."""

    sequence: int
    uid: str
    result: BuildResult


def read_record(bundle: Store, inputs: str) -> BuildRecord | None:
    """The newest end of a build of these inputs; None where there is none that can be read."""
    found = bundle.get(build_key(inputs))
    try:
        return BuildRecord.model_validate_json(found.data) if found is not None else None
    except ValueError:
        return None


def write_record(bundle: Store, build: BundleBuild, uid: str, result: BuildResult) -> None:
    """A later build of the same inputs replaces it."""
    record = BuildRecord(sequence=build.sequence, uid=uid, result=result)
    bundle.put(build_key(build.digest), record.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode())
