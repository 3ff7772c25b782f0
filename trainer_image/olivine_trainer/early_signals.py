"""SIGTERM before anything else is imported: the kernel does not deliver it to a PID 1 that has no handler.

The image's entrypoint starts Python with it blocked, so that one which comes while the interpreter starts waits.
"""

import signal
from types import FrameType


class EarlySignals:
    """Remembers that the pod was asked to go, until the supervisor takes over."""

    def __init__(self) -> None:
        self.asked = False

    def install(self) -> None:
        """Take SIGTERM and SIGINT, those that wait among them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


EARLY = EarlySignals()
