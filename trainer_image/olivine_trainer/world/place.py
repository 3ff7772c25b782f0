"""Which rank this process is, as PID 1 tells it by the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Place:
    """One process among all."""

    rank: int
    local_rank: int
    """Among the processes of this pod."""
    size: int
    leader_host: str
    port: int
    """Where rank 0 waits for the others."""

    @property
    def leads(self) -> bool:
        """Rank 0 writes to the run's folder; the others train."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without them a lone process."""
        return cls(
            rank=int(environ.get("RANK", "0")),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            size=int(environ.get("WORLD_SIZE", "1")),
            leader_host=environ.get("MASTER_ADDR", "127.0.0.1"),
            port=int(environ.get("MASTER_PORT", "0")),
        )
