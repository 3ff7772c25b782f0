"""Out of memory: the same effective batch in smaller pieces."""

from olivine_api.status import Overrides


def halved(batch_size: int, accumulation: int) -> Overrides | None:
    """A micro-batch of at most half the size whose multiple is the same effective batch; None where it is 1 already."""
    if batch_size <= 1:
        return None
    product = batch_size * accumulation
    smaller = next(size for size in range(batch_size // 2, 0, -1) if product % size == 0)
    return Overrides(batch_size=smaller, gradient_accumulation_steps=product // smaller)
