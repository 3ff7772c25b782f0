"""One TCP connection between rank 0 and another rank: JSON lines, and the news that it closed.

A process that dies has its connections closed by its kernel, at once; keepalive tells of a node that is gone.
"""

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

_KEEPALIVE = {
    "TCP_KEEPIDLE": 10,  # seconds of silence before the first probe
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 30_000,  # milliseconds until unacknowledged data means a lost peer
}
_CHUNK = 1 << 16
LONGEST_LINE = 1 << 30  # bytes


def _left(deadline: float | None) -> float | None:
    """Seconds until the deadline. Raises TimeoutError where it has passed."""
    if deadline is None:
        return None
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


class Line:
    """A connected socket as JSON lines; reads in the caller's thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def send(self, value: Any) -> None:
        """Raises OSError where the other side is gone."""
        self._socket.sendall(json.dumps(value).encode() + b"\n")

    def read(self, seconds: float | None, *, limit: int = LONGEST_LINE) -> Any:
        """The next value. Raises TimeoutError after `seconds`, EOFError or OSError where the other side is gone.

        More than `limit` bytes count as gone, too.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        pieces = [self._rest]
        size = len(self._rest)
        while b"\n" not in pieces[-1]:
            try:
                self._socket.settimeout(_left(deadline))
                piece = self._socket.recv(_CHUNK)
            except TimeoutError:
                self._rest = b"".join(pieces)
                raise
            size += len(piece)
            if not piece or size > limit:
                raise EOFError
            pieces.append(piece)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return json.loads(line)

    def is_open(self) -> bool:
        """Whether the other side still holds on, without taking anything that it sent."""
        self._socket.settimeout(0)
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def block(self) -> None:
        """From here on reads and writes wait."""
        self._socket.settimeout(None)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class Link:
    """A line read by a thread of its own: values wait in a queue, and the end of the line is told at once."""

    def __init__(self, rank: int, name: str, line: Line) -> None:
        self.rank = rank
        self.name = name
        """The rank in words."""
        self.values: queue.Queue[Any] = queue.Queue()
        self._line = line
        self._sending = threading.Lock()

    def start(self, on_notice: "Callable[[Link, Any], None]", on_end: "Callable[[Link], None]") -> None:
        """Read until the end; `on_notice` gets what is no value."""
        self._line.block()

        def read() -> None:
            while True:
                try:
                    message = self._line.read(None)
                except (OSError, EOFError, ValueError):
                    on_end(self)
                    return
                if "value" in message:
                    self.values.put(message["value"])
                else:
                    on_notice(self, message)

        threading.Thread(target=read, name=f"link-{self.rank}", daemon=True).start()

    def send(self, message: Any) -> None:
        """Raises OSError where the other side is gone."""
        with self._sending:
            self._line.send(message)
