"""Rows answered by all ranks together: each row by one of them, and every rank gets all answers, in the rows' order."""

from collections.abc import Callable, Sequence

from olivine_trainer.evaluation.loss import Tick, dealt
from olivine_trainer.modeling.example import Example
from olivine_trainer.world.world import World


def answered(
    examples: Sequence[Example], batch_size: int, answer: Callable[[list[Example]], Sequence[str]], *, tick: Tick, world: World
) -> list[str]:
    """`answer` gets batches of prompts of similar length, the longest first."""
    order = sorted(range(len(examples)), key=lambda index: (-examples[index].prompt_length, index))
    starts = range(0, len(order), batch_size)
    mine: list[tuple[int, str]] = []
    for done, start in dealt(starts, world):
        if start is not None:
            members = order[start : start + batch_size]
            mine.extend(zip(members, answer([examples[index] for index in members]), strict=True))
        tick(done, len(starts))
    found = dict(pair for part in world.gather(mine) for pair in part)
    return [found[index] for index in range(len(examples))]
