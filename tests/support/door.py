"""A door before a server: a relay that can be shut, so that a real store is away for a while."""

import contextlib
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Door:
    """Relays connections to a server while it is open; shut, it breaks those that are there and resets new ones."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._shut_until = 0.0
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: str = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.refused = 0

    def shut_for(self, seconds: float) -> None:
        """From now on."""
        with self._lock:
            self._shut_until = time.monotonic() + seconds
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Serve until closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                shut = time.monotonic() < self._shut_until
            if shut:
                self.refused += 1
                client.close()
                continue
            server = socket.create_connection(self._server)
            with self._lock:
                self._connections |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._connections -= {source, sink}

    def close(self) -> None:
        """Let nobody in any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def door_before(endpoint: str) -> Generator[Door]:
    """An open door before the server at `endpoint`."""
    parts = urlsplit(endpoint)
    door = Door((parts.hostname or "", parts.port or 80))
    thread = threading.Thread(target=door.run, daemon=True)
    thread.start()
    try:
        yield door
    finally:
        door.close()
        thread.join(5)
