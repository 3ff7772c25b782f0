"""A small HTTP server of a test's own."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

T = TypeVar("T")


class QuietHandler(BaseHTTPRequestHandler):
    """Keeps connections, and says nothing on standard error."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (as the base class has it)
        """Nothing."""


@contextmanager
def served(handler: type[BaseHTTPRequestHandler], member: str, make: Callable[[int], T]) -> Generator[T]:
    """What `make` makes of the port of 127.0.0.1 where `handler` answers; its requests find it as `self.<member>`."""
    bound = type(handler.__name__, (handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = True
    state = make(int(server.server_address[1]))
    setattr(bound, member, state)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
