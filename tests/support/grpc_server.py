"""A server of gRPC whose every answer the test writes."""

import asyncio
import struct
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events

HEADERS = [(":status", "200"), ("content-type", "application/grpc")]


class Answering(asyncio.Protocol):
    """One connection; `answer(connection, number, path, messages)` is called for each request."""

    def __init__(self, answer: Callable[["Answering", int, str, bytes], None]) -> None:
        self._answer = answer
        self.http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self.transport: asyncio.Transport
        self.paths: dict[int, str] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytearray] = {}
        self.resets: list[int] = []
        self.pings = 0
        self.answers_pings = True
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.http.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = {str(name): str(value) for name, value in event.headers}
                self.headers[event.stream_id] = headers
                self.bodies[event.stream_id] = bytearray()
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                number = event.stream_id
                path = self.headers[number][":path"]
                self._answer(self, number, path, bytes(self.bodies[number]))
            elif isinstance(event, h2.events.StreamReset):
                self.resets.append(event.stream_id)
            elif isinstance(event, h2.events.PingReceived):
                self.pings += 1
                if not self.answers_pings:
                    self.http.data_to_send()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def flush(self) -> None:
        self.transport.write(self.http.data_to_send())

    def message(self, number: int, message: bytes, *, begins: bool = True) -> None:
        if begins:
            self.http.send_headers(number, HEADERS)
        self.http.send_data(number, struct.pack(">BI", 0, len(message)) + message)
        self.flush()

    def end(self, number: int, status: str = "0", text: str = "") -> None:
        self.http.send_headers(
            number, [("grpc-status", status), ("grpc-message", text)], end_stream=True
        )
        self.flush()
