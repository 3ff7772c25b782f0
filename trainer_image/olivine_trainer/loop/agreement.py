"""Before each micro-batch all ranks agree whether to go on: none runs ahead of one that was asked to go, or ran out of memory."""

from dataclasses import dataclass
from typing import NoReturn

from olivine_trainer.errors import InterruptedRunError
from olivine_trainer.loop.stop import StopFlag
from olivine_trainer.world.world import World

_GO_ON, _STOP, _EXHAUSTED = 0, 1, 2


class MemoryExhaustedError(Exception):
    """A micro-batch did not fit into some rank's memory: the step has not been, on any rank."""


@dataclass(frozen=True)
class Agreement:
    """What the ranks decide together, step by step."""

    world: World
    stop: StopFlag

    def check(self) -> None:
        """Raise InterruptedRunError, on all ranks, where one of them is to go.

        Between the batches of an evaluation: answers to one may take minutes that a rank without a batch has to wait, so that
        the ranks speak by the channel that has no time limit.
        """
        if self.world.size == 1:
            self.stop.check()
        elif any(self.world.gather(self.stop.requested)):
            self._stop()

    def go_on(self, exhausted: str | None, *, step_done: bool = False) -> None:
        """Raise MemoryExhaustedError on all ranks where memory ran out on one; InterruptedRunError unless `step_done`.

        `exhausted` says how memory ran out here.
        """
        if self.world.size == 1:
            if exhausted is not None:
                raise MemoryExhaustedError(exhausted)
            if not step_done:
                self.stop.check()
            return
        mine = _EXHAUSTED if exhausted is not None else _STOP if self.stop.requested else _GO_ON
        worst = self.world.greatest(mine)
        if worst == _EXHAUSTED:
            raise MemoryExhaustedError(exhausted or "memory ran out on another rank")
        if worst == _STOP and not step_done:
            self._stop()

    def _stop(self) -> NoReturn:
        self.stop.check()
        self.stop.requested = True  # uploads hurry on every rank
        raise InterruptedRunError("the pod of another rank was asked to go (SIGTERM)")
