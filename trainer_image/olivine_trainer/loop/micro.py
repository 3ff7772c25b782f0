"""The micro-batch: how many rows a rank computes at once. It shrinks where memory runs out; the effective batch never changes."""

import gc
from dataclasses import dataclass

import torch

from olivine_trainer.errors import OutOfMemoryError


@dataclass
class MicroBatch:
    """The size that all ranks use now."""

    rows: int

    def halve(self, why: str, *, step: int, memory: str) -> None:
        """Half the rows. Raises OutOfMemoryError where there is but one; `memory` tells peak and limit."""
        if self.rows == 1:
            advice = "lower data.maxLength, or raise pods.resources.limits.memory"
            raise OutOfMemoryError(f"{why}, with one row at a time ({memory})", step=step, advice=advice)
        self.rows //= 2


def eval_batch(asked: int, micro: int, batch_size: int) -> int:
    """Rows that an evaluation computes at once: shrunk by the factor by which training's were."""
    return max(1, asked * micro // batch_size) if micro < batch_size else asked


def free_caches() -> None:
    """Give back what a failed step holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
