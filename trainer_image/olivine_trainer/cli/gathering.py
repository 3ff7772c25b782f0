"""From a lone process to a rank among others: is the run over, who else is there, what ends a process that waits in vain."""

import os
from collections.abc import Callable

from olivine_api import names
from olivine_trainer.errors import PeerLostError, TrainerError
from olivine_trainer.job import Job
from olivine_trainer.reporting.logs import CONTEXT, warn
from olivine_trainer.storage.records import Published, RunRecords
from olivine_trainer.world.peers import Peers
from olivine_trainer.world.place import Place
from olivine_trainer.world.rendezvous import Rendezvous
from olivine_trainer.world.world import World


class RunIsOverError(Exception):
    """The run was published: there is nobody to wait for."""

    def __init__(self, published: Published) -> None:
        super().__init__("the run is over")
        self.published = published


def gather_ranks(job: Job, place: Place, records: RunRecords, end_abruptly: Callable[[PeerLostError], None]) -> World:
    """All ranks of the job, once they are there. Raises RunIsOverError where the run is, PeerLostError where some do not come."""
    if place.size == 1:
        return World(place)
    CONTEXT.fields["rank"] = place.rank

    def look() -> None:
        if (published := records.published()) is not None:
            raise RunIsOverError(published)

    def look_again() -> None:
        try:
            look()
        except TrainerError as error:
            warn(f"whether the run is over cannot be read now: {error.message}")

    look()
    pod = os.environ.get(names.ENV_POD_NAME, "")
    links = Rendezvous(place, run=job.identity.uid, pod=pod, look=look_again).meet()
    return World(place, Peers(links, leads=place.leads, end_abruptly=end_abruptly))
