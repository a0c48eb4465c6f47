"""The clients of a trial: writers and readers of all kinds, and a watch at each server."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import count
from random import Random

from kvd.testing.crash.facts import fact_of, files_of
from tests.replicas.trials.ledger import History, Listing, Request, Watched
from tests.replicas.trials.talk import Address, NoResponse, NotSent, Response, Talk, watch
from tests.replicas.trials.traffic import Traffic

ROOT = "/trial"
IMPATIENT_S = 0.4
PATIENT_S = 9.0
"""Longer than any server lets a write wait."""
_WATCH_S = 3.0
_TTLS_S = (1, 2, 3)
_COUNTERS = 4
_AFTER_FAILURE_S = 0.02
_KEPT_MAX = 300


class Client:
    """One client: it sends one request after the other, and goes on to the next server on errors.

    Attributes:
        acknowledged: The times of its acknowledged writes.
    """

    def __init__(
        self,
        number: int,
        addresses: Sequence[Address],
        history: History,
        traffic: Traffic,
        *,
        seed: int,
        within_s: float,
        pause_s: float,
    ) -> None:
        self.acknowledged: list[float] = []
        self._number = number
        self._talks = [Talk(address) for address in addresses]
        self._server = number % len(addresses)
        self._history = history
        self._traffic = traffic
        self._dice = Random(f"{seed} {number}")
        self._within_s = within_s
        self._pause_s = pause_s
        self._values = count(1)
        self._own: list[str] = []

    async def run(self) -> None:
        """Send requests until cancelled."""
        try:
            while True:
                if self._traffic.is_hushed:
                    await asyncio.sleep(_AFTER_FAILURE_S)
                    continue
                if self._traffic.avoided == self._server:
                    await self._next_server()
                await self._one()
                await asyncio.sleep(self._pause_s * self._dice.random() * 2)
        finally:
            for talk in self._talks:
                talk.close()

    async def _one(self) -> None:
        ways = (
            (self._write, 40),
            (self._swap, 16),
            (self._post, 10),
            (self._lease, 6),
            (self._delete, 6),
            (self._read, 14),
            (self._refused, 8),
        )
        (way,) = self._dice.choices([w for w, _ in ways], [weight for _, weight in ways])
        await way()

    async def mark(self, key: str) -> int:
        """Write a key; return the index of that, 0 if it was not acknowledged."""
        request = Request("put", key, self._value())
        return request.point if await self._send(request) else 0

    def _value(self) -> str:
        return f"{self._number}-{next(self._values)}"

    async def _write(self) -> None:
        value = self._value()
        condition = {"prevExist": "false"} if self._dice.random() < 0.5 else {}
        request = Request("put", f"{ROOT}/unique/{value}", value, condition)
        if await self._send(request) and request.is_acknowledged:
            self._own.append(request.key)
            del self._own[:-_KEPT_MAX]

    async def _swap(self) -> None:
        """Replace a counter on condition that it is as it was read, at this server."""
        key = f"{ROOT}/counter/{self._dice.randrange(_COUNTERS)}"
        read = Request("local", key)
        if not await self._send(read):
            return
        condition = {"prevExist": "false"}
        if read.is_acknowledged:
            node = read.body["node"]
            condition = self._dice.choice(
                ({"prevIndex": str(node["modifiedIndex"])}, {"prevValue": node["value"]})
            )
        await self._send(Request("put", key, self._value(), condition))

    async def _post(self) -> None:
        await self._send(Request("post", f"{ROOT}/queue", self._value()))

    async def _lease(self) -> None:
        value = self._value()
        key = f"{ROOT}/lease/{value}"
        await self._send(Request("put", key, value, ttl_s=self._dice.choice(_TTLS_S)))

    async def _delete(self) -> None:
        if self._own:
            key = self._own.pop(self._dice.randrange(len(self._own)))
            await self._send(Request("delete", key))

    async def _read(self) -> None:
        kind = "quorum" if self._dice.random() < 0.7 else "local"
        key = f"{ROOT}/counter/{self._dice.randrange(_COUNTERS)}"
        if self._own and self._dice.random() < 0.5:
            key = self._dice.choice(self._own)
        await self._send(Request(kind, key))

    async def _refused(self) -> None:
        """Ask for what must be refused, as the server knows that has what was acknowledged."""
        if not self._own:
            return
        key = self._dice.choice(self._own)
        condition = self._dice.choice(({"prevExist": "false"}, {"prevValue": "another"}))
        await self._send(Request("put", key, self._value(), condition))

    async def _send(self, request: Request) -> bool:
        """Send a request; return whether there is a response."""
        request.server = self._server
        method, target, form = _parts(request)
        request.began = time.monotonic()
        try:
            response = await self._talks[self._server].request(
                method, target, form, within_s=self._within_s
            )
        except NotSent:
            await self._next_server()
            return False
        except NoResponse:
            request.ended = time.monotonic()
            self._history.requests.append(request)
            await self._next_server()
            return False
        except asyncio.CancelledError:
            request.ended = time.monotonic()
            self._history.requests.append(request)
            raise
        request.ended = time.monotonic()
        request.status, request.index = response.status, response.index
        request.body = response.body if isinstance(response.body, dict) else {}
        self._history.requests.append(request)
        if request.status >= 500:
            await self._next_server()
            return False
        if request.writes and request.is_acknowledged:
            self.acknowledged.append(request.ended)
        return True

    async def _next_server(self) -> None:
        self._server = (self._server + 1) % len(self._talks)
        await asyncio.sleep(_AFTER_FAILURE_S)


class Probe(Client):
    """A client that only writes keys of its own; its gaps are the outages."""

    async def _one(self) -> None:
        request = Request("put", f"{ROOT}/probe/{(value := self._value())}", value)
        if await self._send(request) and request.is_acknowledged:
            self._traffic.known.append(request.key)


class Doubter(Client):
    """A client that stays with one server, and updates what was written through others.

    A server that has not seen that would refuse it: the key is missing.
    """

    async def run(self) -> None:
        """Send requests until cancelled."""
        try:
            while True:
                if not self._traffic.is_hushed and self._traffic.known:
                    await self._one()
                await asyncio.sleep(self._pause_s)
        finally:
            for talk in self._talks:
                talk.close()

    async def _one(self) -> None:
        key = self._traffic.known[-1]
        await self._send(Request("put", key, self._value(), {"prevExist": "true"}))

    async def _next_server(self) -> None:
        await asyncio.sleep(_AFTER_FAILURE_S)


def _parts(request: Request) -> tuple[str, str, Mapping[str, object]]:
    target = f"/v2/keys{request.key}"
    match request.kind:
        case "quorum":
            return "GET", f"{target}?quorum=true", {}
        case "local":
            return "GET", target, {}
        case "delete":
            return "DELETE", target, {}
    form: dict[str, object] = {"value": request.value, **request.condition}
    if request.ttl_s:
        form["ttl"] = request.ttl_s
    return ("POST" if request.kind == "post" else "PUT"), target, form


class Watcher:
    """All events at one server, in a stream or by long polls, each behind the last one that came.

    Attributes:
        cleared: How often the server had no history as far back as that.
    """

    def __init__(self, server: int, address: Address, history: History, *, is_stream: bool) -> None:
        self.cleared = 0
        self._server = server
        self._address = address
        self._history = history
        self._is_stream = is_stream
        self._watched = Watched(server, history.first)
        history.watched.append(self._watched)

    @property
    def index(self) -> int:
        facts = self._watched.facts
        return facts[-1].index if facts else self._watched.after

    async def run(self) -> None:
        """Watch until cancelled."""
        talk = Talk(self._address)
        try:
            while True:
                await (self._stream() if self._is_stream else self._poll(talk))
        finally:
            talk.close()

    async def _stream(self) -> None:
        target = f"{self._target()}&stream=true"
        async for response in watch(self._address, target, within_s=_WATCH_S):
            self._take(response)
        await asyncio.sleep(_AFTER_FAILURE_S)

    async def _poll(self, talk: Talk) -> None:
        try:
            self._take(await talk.request("GET", self._target(), within_s=_WATCH_S))
        except (NotSent, NoResponse):
            await asyncio.sleep(_AFTER_FAILURE_S)

    def _target(self) -> str:
        return f"/v2/keys{ROOT}?wait=true&recursive=true&waitIndex={self.index + 1}"

    def _take(self, response: Response) -> None:
        if response.status == 200 and isinstance(response.body, dict):
            self._watched.times.append(time.monotonic())
            self._watched.facts.append(fact_of(response.body))
        elif response.status == 400 and response.body.get("errorCode") == 401:
            self.cleared += 1
            self._watched = Watched(self._server, int(response.body["index"]))
            self._history.watched.append(self._watched)


async def listing(server: int, address: Address) -> Listing:
    """Return what a server has.

    Raises:
        NotSent, NoResponse: it does not respond.
    """
    talk = Talk(address)
    try:
        seen = await talk.request("GET", f"/v2/keys{ROOT}?recursive=true", within_s=30)
    finally:
        talk.close()
    if seen.status != 200:
        raise NoResponse(f"{seen}")
    return Listing(server, seen.index, files_of(seen.body["node"]), time.monotonic())
