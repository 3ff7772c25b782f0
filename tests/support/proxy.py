"""A TCP proxy that can turn deaf: what a broken middlebox does to connections, and to watches above all."""

import selectors
import socket
import threading
from dataclasses import dataclass


@dataclass
class _Pipe:
    near: socket.socket
    far: socket.socket
    deaf: bool = False


class Proxy:
    """From a port of its own to another one, for as long as the `with` block lasts."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._pipes: dict[socket.socket, _Pipe] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._shut = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join()
        for one in (*self._pipes, self._listener):
            one.close()

    def deafen(self) -> None:
        """Connections that are open stay open, and nothing comes through any more; new ones work."""
        with self._lock:
            for pipe in self._pipes.values():
                pipe.deaf = True

    def shut(self, shut: bool) -> None:
        """Nothing comes through any connection, old or new, while it is shut."""
        with self._lock:
            self._shut = shut

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(timeout=0.1):
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        pipe = _Pipe(near, far)
        with self._lock:
            for end in (near, far):
                self._pipes[end] = pipe
                self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, end: socket.socket) -> None:
        with self._lock:
            pipe = self._pipes.get(end)
            if pipe is None:
                return
            other = pipe.far if end is pipe.near else pipe.near
            try:
                data = end.recv(65536)
                if data and not pipe.deaf and not self._shut:
                    other.sendall(data)
            except OSError:
                data = b""
            if not data:
                for one in (end, other):
                    self._selector.unregister(one)
                    del self._pipes[one]
                    one.close()
