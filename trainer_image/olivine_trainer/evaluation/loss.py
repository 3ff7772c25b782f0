"""Validation loss: the mean negative log-likelihood of a learned token."""

from collections.abc import Callable, Iterator, Sequence

import torch

from olivine_trainer.modeling.example import Example
from olivine_trainer.modeling.forward import SummedLoss, collate
from olivine_trainer.world.world import World, alone

Tick = Callable[[int, int], None]
"""Called with (batches done, batches in all): moves the progress, and raises where the run is to stop."""


@torch.no_grad()
def mean_loss(
    loss: SummedLoss,
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad_id: int,
    device: torch.device,
    tick: Tick,
    world: World | None = None,
) -> float:
    """Nats a learned token over all examples; batches of similar length, so that little is padding, dealt out to the ranks."""
    world = world or alone()
    loss.eval()
    order = sorted(range(len(examples)), key=lambda index: (-len(examples[index].ids), index))
    starts = range(0, len(order), batch_size)
    total, tokens = 0.0, 0
    for done, start in dealt(starts, world):
        if start is not None:
            batch = collate([examples[index] for index in order[start : start + batch_size]], pad_id, device)
            if batch.weight:
                total += float(loss(batch))
                tokens += batch.weight
        tick(done, len(starts))
    total, tokens = world.sums([total, tokens])
    return total / max(tokens, 1)


def dealt(starts: Sequence[int], world: World) -> Iterator[tuple[int, int | None]]:
    """This rank's batches, as (batches done by all after it, where it starts): a round each, in which a rank may have none.

    All ranks have as many rounds, so that they can agree after each.
    """
    for first in range(0, len(starts), world.size):
        mine = first + world.rank
        yield min(first + world.size, len(starts)), starts[mine] if mine < len(starts) else None
