"""Plays one scenario on a server and compares each answer with the recorded one.

Tokens in requests and in recorded answers:

    {p} the scenario's key prefix    {+3} {-2} an index relative to the scenario's start
    {#3} the same in 20 digits       {z:1000} that many "z"        {n} the repetition's number
    {host} the server's host:port    {$ID} a value kept by `save`  {exp} a time of expiration
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.compare import Comparison, Indexes, Observation, differences, fill_in
from tests.conformance.wire import Address, Answer, BackgroundRequest, Connection, Request

Scenario = dict[str, Any]
Step = dict[str, Any]

SCENARIO_TIMEOUT_S = 100.0
REPEATING_CONNECTIONS = 8
# Of the user root in the scenarios that ask for users; the others ask nobody.
ROOT = {"Authorization": "Basic cm9vdDpyb290"}


@dataclass
class Replay:
    """One scenario being played."""

    scenario: Scenario
    address: Address
    prefix: str
    loose: bool = False
    failures: list[str] = field(default_factory=list)
    saved: dict[str, str] = field(default_factory=dict)

    async def play(self) -> list[str]:
        """Play all steps; what differs, a line each."""
        self.connection = Connection(self.address)
        self.background: dict[str, BackgroundRequest] = {}
        await self.clear()
        start = await self.connection.call(Request("GET", "/v2/keys/"))
        indexes = Indexes(int(start.headers["x-etcd-index"]), loose=self.loose)
        self.comparison = Comparison(indexes, self.prefix, self.host, self.saved, time.time())
        try:
            async with asyncio.timeout(SCENARIO_TIMEOUT_S):
                for number, step in enumerate(self.scenario["steps"], 1):
                    await self.step(number, step)
        finally:
            for request in self.background.values():
                request.stop()
            await self.clear()
            self.connection.close()
        return self.failures

    @property
    def host(self) -> str:
        return "{}:{}".format(*self.address)

    async def step(self, number: int, step: Step) -> None:
        if "sleep" in step:
            self.comparison.slept = True
            self.connection.close()
            await asyncio.sleep(step["sleep"])
        elif "bg" in step:
            self.background[step["bg"]] = BackgroundRequest(self.address)
            await self.background[step["bg"]].start(self.request(step))
        elif "x" in step:
            statuses = await self.repeat(step)
            if statuses != step["r"]["statuses"]:
                self.fail(number, step, [f"statuses: expected {step['r']['statuses']}, {statuses}"])
        else:
            observation = await (self.join(step) if "join" in step else self.exchange(step))
            # The second answer of a step is the right one where etcd's own is a bug of etcd.
            expected = step.get("alt", step["r"])
            found = differences(self.comparison, step, expected, observation)
            self.fail(number, step, found)

    async def exchange(self, step: Step) -> Observation:
        """Make the request of a step and read its answer."""
        sent_s = time.time()
        if "raw" in step:
            connection = Connection(self.address)
            raw = fill_in(self.comparison, step["raw"]).encode()
            raw = raw.replace(b"\\r", b"\r").replace(b"\\n", b"\n")
            method = step["raw"].split(" ")[0]
            answer = await connection.call(Request(method, "", raw=raw))
            connection.close()
        else:
            method = step["m"]
            answer = await self.connection.call(self.request(step))
            self.save(step, answer)
        return Observation(answer, method, sent_s)

    async def join(self, step: Step) -> Observation:
        """Wait for what a request in the background was told."""
        request, expected = self.background[step["join"]], step.get("alt", step["r"])
        self.comparison.slept |= "wait" in step
        stays_open = expected["end"] == "open"
        await request.wait(
            step.get("wait", 0) + 5, events=len(expected["events"]) if stays_open else None
        )
        return Observation(
            request.answer,
            "GET",
            self.comparison.started_s,
            lines=request.lines,
            head_came_early=request.head_came_early,
            complete=request.complete,
        )

    async def repeat(self, step: Step) -> list[int]:
        """Make a request many times; the statuses that came."""
        numbers = iter(range(1, step["x"] + 1))
        statuses: set[int] = set()

        async def work() -> None:
            connection = Connection(self.address)
            for number in numbers:
                statuses.add((await connection.call(self.request(step, number))).status)
            connection.close()

        numbered = "{n}" in step["u"] + step.get("b", "")
        await asyncio.gather(*[work() for _ in range(1 if numbered else REPEATING_CONNECTIONS)])
        return sorted(statuses)

    def request(self, step: Step, number: int = 0) -> Request:
        def filled(text: str) -> str:
            return fill_in(self.comparison, text.replace("{n}", str(number)))

        return Request(
            step["m"],
            filled(step["u"]),
            {name: filled(value) for name, value in step.get("h", {}).items()},
            filled(step["b"]).encode() if "b" in step else None,
        )

    def save(self, step: Step, answer: Answer) -> None:
        for name, path in step.get("save", {}).items():
            value: Any = json.loads(answer.body)
            for key in path.split("."):
                value = value[int(key)] if key.isdigit() else value[key]
            self.saved[name] = value

    def fail(self, number: int, step: Step, found: list[str]) -> None:
        shown = step.get("raw") or f"{step.get('m', 'join')} {step.get('u', step.get('join'))}"
        self.failures += [f"{self.scenario['name']} #{number} {shown[:80]}: {one}" for one in found]

    async def clear(self) -> None:
        """Remove what the scenario can have made; all visible keys where it works on the root."""
        tops = {self.prefix}
        if "root" in self.scenario["flags"]:
            tops |= set(self.top_names())
            listing = await self.connection.call(Request("GET", "/v2/keys/"))
            nodes = json.loads(listing.body)["node"].get("nodes", [])
            tops |= {node["key"][1:] for node in nodes}
        for top in sorted(tops):
            target = f"/v2/keys/{top}?recursive=true"
            await self.connection.call(Request("DELETE", target, ROOT))

    def top_names(self) -> Iterator[str]:
        """The names below the root that the scenario mentions, hidden ones too."""
        for step in self.scenario["steps"]:
            match = re.match(r"/v2/keys/([^/?{%]+)(?:[/?]|$)", step.get("u", ""))
            if match:
                yield match[1]
