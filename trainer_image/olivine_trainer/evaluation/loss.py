"""Validation loss: the mean negative log-likelihood of a learned token."""

from collections.abc import Callable, Sequence

import torch

from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import SummedLoss, collate

Tick = Callable[[int, int], None]
"""Called with (batches done, batches in all): moves the progress, and raises where the run is to stop."""


@torch.no_grad()
def mean_loss(
    loss: SummedLoss, examples: Sequence[Example], *, batch_size: int, pad_id: int, device: torch.device, tick: Tick
) -> float:
    """Nats a learned token over all examples; batches of similar length, so that little is padding."""
    loss.eval()
    order = sorted(range(len(examples)), key=lambda index: (-len(examples[index].ids), index))
    starts = range(0, len(order), batch_size)
    total, tokens = 0.0, 0
    for done, start in enumerate(starts, start=1):
        batch = collate([examples[index] for index in order[start : start + batch_size]], pad_id, device)
        if len(batch.labels):
            total += float(loss(batch.ids, batch.mask, batch.positions, batch.labels))
            tokens += len(batch.labels)
        tick(done, len(starts))
    return total / max(tokens, 1)
