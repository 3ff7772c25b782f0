"""`<storage.uri>/<namespace>/index/<input digest>.json`: which artifact came out of the same specification, rows and base model."""

from datetime import datetime

from olivine_api.base import StatusModel
from olivine_api.status import Artifact, JobIdentity
from olivine_trainer.storage.store import Store


class IndexEntry(StatusModel):
    """A pointer to a published artifact; whoever follows it verifies the artifact's manifest."""

    input_digest: str
    artifact: Artifact
    job: JobIdentity
    published_at: datetime


def index_key(input_digest: str) -> str:
    """Key below the namespace's folder."""
    return f"index/{input_digest}.json"


def point_to(namespace: Store, entry: IndexEntry, *, again: bool) -> None:
    """Move the pointer to `entry`; where somebody else moves it meanwhile, theirs is as good.

    `again`: the entry is older news, told by a pod that found the run finished: it only fills a gap.
    """
    key = index_key(entry.input_digest)
    body = entry.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()
    if namespace.put_if_absent(key, body) or again:
        return
    found = namespace.get(key)
    if found is not None:
        namespace.put_if_match(key, body, found.etag)


def look_up(namespace: Store, input_digest: str) -> IndexEntry | None:
    """The artifact of equal inputs, where one was published."""
    found = namespace.get(index_key(input_digest))
    return IndexEntry.model_validate_json(found.data) if found is not None else None
