"""The other generator: wrk, with the same workloads as a small Lua script.

wrk costs a little less per request than the bundled generator (bench/README.md) and has other
authors, so the two are witnesses for each other. It cannot keep a script per connection: one
counter numbers all requests. Step n visits `Keyspace.key(n)`, so a key comes round only after all
others have; with far fewer connections than keys its last write has been answered by then. What the
server must hold afterwards therefore follows from the number of requests issued alone, but for
those under way when wrk stopped: at most one per connection.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load.closed_loop import PERCENTS, Figures
from bench.load.keyspace import NUMBER_DIGITS
from bench.load.wire import LoadError
from bench.load.workloads import TTL_S, WrongAnswer

if TYPE_CHECKING:
    from bench.load.keyspace import Keyspace
    from bench.load.wire import Address
    from bench.load.workloads import Expected

KEYS_PER_CONNECTION = 3
"""So many rounds of all connections lie between two requests for one key: they never overlap."""

RENDERED_MAX = 100_000
"""Of so many keys the requests are rendered beforehand; a table of more would fill Lua's memory."""

REPORT = "kvd-bench "

PRELUDE = """\
local directory, keys, stride, start = "{directory}", {keys}, {stride}, {start}
local query, base = "{query}", {base}
local padding = string.rep("x", {padding_bytes})
issued, written = 0, 0  -- globals: done() reads them through the thread object

local function value(number)
  return string.format("%0{digits}d", base + number) .. padding
end

-- A request for each step of a round, up to the body; body_bytes is nil where there is none.
local function heads(method, body_bytes, tail)
  local form = body_bytes and "Content-Type: application/x-www-form-urlencoded\\r\\n"
    .. "Content-Length: " .. body_bytes .. "\\r\\n" or ""
  local function head(n)
    return string.format("%s %s/k%07d%s HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n%s\\r\\n",
      method, directory, (n * stride + start) % keys, tail or "", form)
  end
  local rendered = {{}}
  if keys > {rendered_max} then  -- too many to hold: each is rendered when it is asked for
    return setmetatable(rendered, {{__index = function(_, n) return head(n) end}})
  end
  for n = 0, keys - 1 do rendered[n] = head(n) end
  return rendered
end

local list = "GET " .. directory .. query .. " HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n"
local ttl = "ttl={ttl_s}&refresh=true&prevExist=true"
local gets = heads("GET")
local quorums = heads("GET", nil, "?quorum=true")
local puts = heads("PUT", #"value=" + {value_bytes})
local posts = heads("POST", #"value=" + {value_bytes})
local swaps = heads("PUT", #"prevValue=&value=" + 2 * {value_bytes})
local refreshes = heads("PUT", #ttl)
local deletes = heads("DELETE")

local function write(rendered)
  written = written + 1
  return rendered[written % keys] .. "value=" .. value(written)
end

local function percentiles(latency)
  local found = {{}}
  for n, percent in ipairs({{{percents}}}) do found[n] = latency:percentile(percent) end
  return table.concat(found, ",")
end

local threads = {{}}
function setup(thread) table.insert(threads, thread) end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{report}{{"requests":%d,"errors":%d,"broken":%d,"us":%d,"at":[%s],'
    .. '"issued":%d,"written":%d}}\\n',
    summary.requests, e.status, e.connect + e.read + e.write + e.timeout, summary.duration,
    percentiles(latency),
    threads[1]:get("issued"), threads[1]:get("written")))
end

local function next_request()
  issued = issued + 1
  {request}
end

-- wrk calls request() once and throws the answer away, to see how many requests it holds.
function request()
  request = next_request
  return list
end
"""

REQUESTS = {
    "get": "return gets[issued % keys]",
    "quorum": "return quorums[issued % keys]",
    "put": "return write(puts)",
    "cas": """written = written + 1
  return swaps[written % keys] .. "prevValue=" .. value(math.max(written - keys, 0))
    .. "&value=" .. value(written)""",
    "post": "return write(posts)",
    # Every second request makes a key, the others delete what was made half a round before.
    "delete": """if issued % 2 == 1 then return write(puts) end
  return deletes[(written + math.ceil(keys / 2)) % keys]""",
    "refresh": "return refreshes[issued % keys] .. ttl",
    "mixed": """if issued % 10 == 0 then return write(puts) end
  return gets[issued % keys]""",
    "list": "return list",
    "tree": "return list",
}


class Issued(NamedTuple):
    """Requests that wrk's script handed out, and those of them that wrote a value."""

    issued: int
    written: int


def is_installed() -> bool:
    """Whether there is a `wrk` to call."""
    return shutil.which("wrk") is not None


def lua_script(workload: str, space: Keyspace, *, base: int, rendered_max: int) -> str:
    """Return the Lua program that makes a workload's requests and reports in one line of JSON."""
    return PRELUDE.format(
        directory=space.directory,
        keys=space.keys,
        stride=space.stride,
        start=space.start,
        padding_bytes=len(space.padding),
        value_bytes=space.value_bytes,
        digits=NUMBER_DIGITS,
        ttl_s=TTL_S,
        report=REPORT,
        request=REQUESTS[workload],
        query="?recursive=true" if workload == "tree" else "",
        base=base,
        rendered_max=rendered_max,
        percents=", ".join(map(str, PERCENTS)),
    )


def run(
    address: Address,
    workload: str,
    space: Keyspace,
    *,
    connections: int,
    seconds: float,
    base: int = 0,
    rendered_max: int = RENDERED_MAX,
) -> tuple[Figures, Issued]:
    """Run wrk with one thread for whole seconds; return its figures and what it issued.

    The number of each value written is `base` and how many were written before it. Requests for
    more than `rendered_max` keys are rendered as they go.

    Raises:
        LoadError: wrk failed, a connection broke, or there are too few keys for so many
        connections.
    """
    if space.keys < KEYS_PER_CONNECTION * connections:
        raise LoadError(f"{space.keys} keys are too few for {connections} connections of wrk")
    script = lua_script(workload, space, base=base, rendered_max=rendered_max)
    cpu_s = children_cpu_s()
    report = execute(address, script, connections=connections, seconds=seconds)
    cpu_s = children_cpu_s() - cpu_s
    if report["broken"]:
        raise LoadError(f"wrk met {report['broken']} broken or stalled connections")
    figures = Figures(
        generator="wrk",
        requests=report["requests"],
        errors=report["errors"],
        seconds=report["us"] / 1e6,
        p50_us=report["at"][PERCENTS.index(50)],
        p99_us=report["at"][PERCENTS.index(99)],
        generator_cpu_us=cpu_s * 1e6 / max(report["requests"], 1),
        latencies_us=tuple(report["at"]),
    )
    return figures, Issued(report["issued"], report["written"])


def execute(address: Address, lua: str, *, connections: int, seconds: float) -> dict[str, Any]:
    """Run wrk with a script; return what the script reports at its end."""
    with tempfile.TemporaryDirectory(prefix="kvd-wrk-") as directory:
        script = Path(directory, "requests.lua")
        script.write_text(lua)
        finished = subprocess.run(
            [
                "wrk", "--threads", "1", "--connections", str(connections),
                "--duration", f"{max(round(seconds), 1)}s", "--timeout", "30s", "--latency",
                "--script", str(script), f"http://{address[0]}:{address[1]}",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    lines = [line for line in finished.stdout.splitlines() if line.startswith(REPORT)]
    if finished.returncode or not lines:
        raise LoadError(f"wrk failed: {finished.stdout}{finished.stderr}")
    report: dict[str, Any] = json.loads(lines[0].removeprefix(REPORT))
    return report


def check(
    workload: str, space: Keyspace, found: Expected, issued: Issued, *, connections: int
) -> None:
    """Raise `WrongAnswer` unless `found` is what the issued requests leave behind.

    A key may be one write behind where that write was still under way when wrk stopped, and no more
    keys than there were connections.
    """
    if workload == "post":
        check_posts(space, found, issued.written, connections)
        return
    behind = []
    for key, (newest, older) in last_two_states(workload, space, issued).items():
        if found[key] == newest:
            continue
        if found[key] != older:
            raise WrongAnswer(
                f"{space.path(key)}: expected {newest!r} or {older!r}, found {found[key]!r}"
            )
        behind.append(key)
    if len(behind) > connections:
        raise WrongAnswer(f"{len(behind)} keys lack their last write, of {connections} connections")


def check_posts(space: Keyspace, found: Expected, written: int, connections: int) -> None:
    """Raise `WrongAnswer` unless `found` holds all values issued but for those under way."""
    for number, value in found.items():
        if not 1 <= number <= written or value != space.value(number):
            raise WrongAnswer(f"{space.directory} holds {value!r}, which was never posted")
    if len(found) < written - connections:
        raise WrongAnswer(f"{written} posts were issued, but {len(found)} found")


def last_two_states(
    workload: str, space: Keyspace, issued: Issued
) -> dict[int, tuple[bytes | None, bytes | None]]:
    """Return what each key holds after its last and after its last but one write.

    Only the last rounds can matter: in two rounds every key is written twice.
    """
    first = space.value(0)
    states: dict[int, tuple[bytes | None, bytes | None]] = dict.fromkeys(
        range(space.keys), (first, first)
    )
    if workload == "delete":
        half = (space.keys + 1) // 2
        for n in range(max(1, issued.issued - 4 * space.keys), issued.issued + 1):
            number = (n + 1) // 2
            key = space.key(number if n % 2 else number + half)
            states[key] = (space.value(number) if n % 2 else None, states[key][0])
    else:
        for number in range(max(1, issued.written - 2 * space.keys), issued.written + 1):
            key = space.key(number)
            states[key] = (space.value(number), states[key][0])
    return states


def children_cpu_s() -> float:
    """Return the user and system time of all programs that this process has run and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
