"""The sources of several ranks: one process a pod fetches them, its siblings take them over, and all pods must have the same."""

import pickle
from collections.abc import Callable
from pathlib import Path

from olivine_trainer.errors import StorageUnavailableError
from olivine_trainer.loop.claim import Sources
from olivine_trainer.world.world import World


def sources_of_all(fetch: Callable[[], Sources], folder: Path, world: World) -> Sources:
    """This rank's sources; `folder` is shared by the processes of a pod.

    Raises StorageUnavailableError where pods read different rows or weights: they changed in between.
    """
    if world.size == 1:
        return fetch()
    shared = folder / "sources.pickle"
    sources: Sources | None = None
    if world.place.local_rank == 0:
        sources = fetch()
        shared.write_bytes(pickle.dumps(sources))
    fetched = [one for one in world.gather(_digests(sources)) if one is not None]
    if any(one != fetched[0] for one in fetched):
        raise StorageUnavailableError("the pods read different rows or model files: a source was changed while it was read")
    if sources is not None:
        return sources
    loaded: Sources = pickle.loads(shared.read_bytes())  # (written above, by this pod, in its own scratch folder)
    return loaded


def _digests(sources: Sources | None) -> list[str] | None:
    return [sources.rows.digest, sources.model.digest] if sources is not None else None
