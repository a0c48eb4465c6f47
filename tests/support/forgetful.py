"""A proxy that keeps a response to itself."""

import contextlib
import socket
import threading
from collections.abc import Callable


class Forgetful:
    """Passes requests on, but keeps the answer to the first of a kind to itself.

    Of the kind are those that begin with `start`. With `instead`, it calls that and leaves the
    connection open.
    """

    def __init__(
        self, port: int, instead: Callable[[], object] | None = None, start: bytes = b"POST"
    ) -> None:
        self._start = start
        self._to = port
        self._instead = instead
        self._has_forgotten = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._pass, args=[connection], daemon=True).start()

    def _pass(self, connection: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._to))
        with connection, server, contextlib.suppress(OSError):
            while request := connection.recv(65536):
                server.sendall(request)
                answer = server.recv(65536)
                if request.startswith(self._start) and not self._has_forgotten:
                    self._has_forgotten = True
                    if self._instead is None:
                        return
                    self._instead()
                    continue
                connection.sendall(answer)

    def close(self) -> None:
        self._listener.close()
