"""What the person at the terminal reads: progress lines, and the one error that ends a command."""

import sys
import time

_STARTED = time.monotonic()


class DevclusterError(Exception):
    """Something a person has to act on; the message is the whole story, with the log to read where there is one."""


def say(message: str) -> None:
    """Prints a progress line with the seconds since the command began."""
    print(f"[{time.monotonic() - _STARTED:6.1f} s] {message}", file=sys.stderr, flush=True)
