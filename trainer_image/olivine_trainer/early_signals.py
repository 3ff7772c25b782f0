"""SIGTERM before anything else is imported: the kernel does not deliver it to a PID 1 that has no handler."""

import signal
from types import FrameType


class EarlySignals:
    """Remembers that the pod was asked to go, until the supervisor takes over."""

    def __init__(self) -> None:
        self.asked = False

    def install(self) -> None:
        """Take SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


EARLY = EarlySignals()
