"""SIGTERM: at once while nothing is worth saving, at the next safe point while training."""

import signal
from types import FrameType

from olivine_trainer.errors import InterruptedRunError


class AskedToGo(BaseException):
    """SIGTERM at a moment when the run may end at once. Libraries that swallow every Exception let it through."""


class StopFlag:
    """Whether the platform wants the pod back."""

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False

    def install(self) -> None:
        """Take over SIGTERM and SIGINT; until `defer` is called they raise AskedToGo."""
        self._at_once = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def defer(self) -> None:
        """From here on the loop asks at safe points."""
        self._at_once = False
        self.check()

    def ignore(self) -> None:
        """From here on a request changes nothing: the process ends anyway."""
        self._at_once = False

    def check(self) -> None:
        """Raise InterruptedRunError where the pod is to go."""
        if self.requested:
            raise InterruptedRunError("the pod was asked to go (SIGTERM)")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if first and self._at_once:
            raise AskedToGo
