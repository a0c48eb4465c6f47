"""Damage to the index of a stopped store: what is answered before and after it is proved."""

import base64
import http.client
import json
import subprocess
from pathlib import Path
from struct import unpack_from
from typing import Any

from kvd.storage.format.tables import TABLES
from kvd.testing.crash import DISCONNECTED
from tests.crash.lab.experiment import Experiment, Trial, Violation
from tests.crash.lab.indexflip import Target, leaves
from tests.crash.lab.mutant import PROVE_LATE
from tests.crash.lab.process import PATIENCE_S, Kvd, NotListening

_PAGE = 4096
_HEAD_BYTES = 16
# Two bytes a row: of these, one hides from one row to 64, or shows what is none.
_COUNT_AT, _COUNT_BITS = 12, range(1, 8)
# One in so many damages hides rows of keys for certain: who does not count them serves less.
_HIDES_EACH = 3
_TRY_AGAIN = 75
# The first start may be ended, by a signal or with 75; the one after it builds the index again.
_STARTS_MAX = 2
# An event that is missing is waited for in vain.
_ANSWER_S = 5.0
_COMPLETE = "the index is complete"
_DIRECTORIES, _KEYS = 4, 40
_AGAIN = range(0, _KEYS, 3)
_HISTORY = 200
_WATCH = "/v2/keys/k/1?wait=true&recursive=true&waitIndex="
_LATER_WRITES = 12
# What is forgotten of the history by then is not asked for.
_WRITES_MAX = (_STARTS_MAX + 1) * _LATER_WRITES


class Witness:
    """What a whole store answers, and the same questions to a damaged one."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)

    def __enter__(self) -> "Witness":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, target: str, method: str = "GET", **form: object) -> tuple[int, Any]:
        """Return status and body of an answer."""
        body = "&".join(f"{name}={value}" for name, value in form.items()) or None
        head = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        self._http.request(method, target, body, head)
        response = self._http.getresponse()
        data = response.read()
        return response.status, json.loads(data)

    def index(self) -> int:
        """Return the index of the last write."""
        self._http.request("GET", "/v2/keys/k/0/0")
        response = self._http.getresponse()
        response.read()
        return int(response.headers["X-Etcd-Index"])

    def access(self) -> list[object]:
        """Whether users are asked for, by what a guest may read."""
        guest = [self.ask("/v2/keys/secret/key")[0], self.ask("/v2/keys/k/0/0")[0] == 401]
        return [*guest, self.ask("/v2/auth/enable")]

    def history(self, indexes: list[int]) -> list[object]:
        """Return the events from some indexes on."""
        return [_event(self.ask(f"{_WATCH}{n}")) for n in indexes]

    def keys(self) -> dict[str, object]:
        """Return all keys that a guest may read, one by one and listed."""
        found: dict[str, object] = {}
        for d in range(_DIRECTORIES):
            listed = self.ask(f"/v2/keys/k/{d}?recursive=true&sorted=true")
            found[f"/k/{d}/"] = [_node(node) for node in listed[1].get("node", {}).get("nodes", ())]
            for n in range(_KEYS):
                answer = self.ask(f"/v2/keys/k/{d}/{n}")
                found[f"/k/{d}/{n}"] = _node(answer[1].get("node"))
        return found

    def write(self, turn: int) -> dict[str, object]:
        """Write some keys; return what has to be found under them."""
        written: dict[str, object] = {}
        for n in range(_LATER_WRITES):
            key = f"/k/new/{turn}-{n}"
            answer = self.ask(f"/v2/keys{key}", "PUT", value="w" * 700)
            written[key] = _node(answer[1].get("node"))
        return written

    def read(self, keys: list[str]) -> dict[str, object]:
        """Return what is found under some keys."""
        return {key: _node(self.ask(f"/v2/keys{key}")[1].get("node")) for key in keys}


def _node(node: Any) -> object:
    """What of a node does not change with time."""
    if node is None:
        return None
    fields = ("key", "value", "dir", "createdIndex", "modifiedIndex", "expiration")
    return tuple(node.get(name) for name in fields)


def _event(answer: tuple[int, Any]) -> object:
    status, body = answer
    nodes = (body.get("node"), body.get("prevNode"))
    return status, body.get("action"), body.get("errorCode"), *map(_node, nodes)


def _fill(witness: Witness) -> None:
    """Make users, roles, keys with and without a TTL, and things that were removed."""

    def put(target: str, document: object) -> None:
        header = "Basic " + base64.b64encode(b"root:pw").decode()
        witness._http.request(
            "PUT",
            target,
            json.dumps(document),
            {"Content-Type": "application/json", "Authorization": header},
        )
        witness._http.getresponse().read()

    for d in range(_DIRECTORIES):
        for n in range(_KEYS):
            ttl = {"ttl": 100_000 + n} if n % 5 == 0 else {}
            witness.ask(f"/v2/keys/k/{d}/{n}", "PUT", value=f"{d}-{n}-" + "v" * (n * 13), **ttl)
            witness.ask(f"/v2/keys/k/gone/{d}-{n}", "PUT", value="x" * 900)
    witness.ask("/v2/keys/k/gone?recursive=true", "DELETE")
    for n in _AGAIN:
        witness.ask(f"/v2/keys/k/1/{n}", "PUT", value=f"again-{n}")
    witness.ask("/v2/keys/secret/key", "PUT", value="s")
    put("/v2/auth/users/root", {"user": "root", "password": "pw"})
    for n in range(30):
        put(
            f"/v2/auth/roles/r{n}",
            {"role": f"r{n}", "permissions": {"kv": {"read": [f"/r{n}/*"], "write": []}}},
        )
    put("/v2/auth/enable", None)
    put(
        "/v2/auth/roles/guest",
        {"role": "guest", "revoke": {"kv": {"read": ["/*"], "write": ["/*"]}}},
    )
    put(
        "/v2/auth/roles/guest",
        {"role": "guest", "grant": {"kv": {"read": ["/k/*"], "write": ["/k/*"]}}},
    )


def _hiding_bits(file: Path) -> list[int]:
    """Return the bits by which a leaf of `nodes` has fewer rows, but some."""
    data, found = file.read_bytes(), []
    for page in leaves(file, b"nodes"):
        (lower,) = unpack_from("<H", data, page * _PAGE + _COUNT_AT)
        for bit in _COUNT_BITS:
            if lower & 1 << bit and lower - (1 << bit) > _HEAD_BYTES:
                found.append(8 * (page * _PAGE + _COUNT_AT) + bit)
    return found


FLAGS = ("--event-history-limit", str(_HISTORY))


class Base:
    """A stopped store, what it answers when it is whole, and ways to damage its index."""

    def __init__(self, trial: Trial, directory: Path) -> None:
        self.trial = trial
        with Kvd(directory, *FLAGS) as kvd:
            kvd.start()
            with Witness(kvd.port) as witness:
                _fill(witness)
            kvd.terminate()
        self.target = Target(directory, None, trial.mutant)
        self.kvd = self.target.kvd
        self.kvd.flags = FLAGS
        with Kvd(directory, *FLAGS) as kvd:
            kvd.start()
            with Witness(kvd.port) as witness:
                last = int(witness.ask(f"/v2/keys/k/1/{_AGAIN[-1]}")[1]["node"]["modifiedIndex"])
                self.indexes = list(range(witness.index() - _HISTORY + _WRITES_MAX, last + 1, 7))
                self.access, self.keys = witness.access(), witness.keys()
                self.history = witness.history(self.indexes)
            kvd.kill()
        self.target.restore()
        self.leaves = [page for table in TABLES for page in leaves(self.target.file, table)]
        self.hiding = _hiding_bits(self.target.file)
        trial.check(self.access == [401, False, (200, {"enabled": True})], f"{self.access}")
        trial.check(None not in self.keys.values(), "a key is missing from a whole store")

    def damage(self, turn: int) -> str:
        """Put the stopped store back and damage its index; return how."""
        dice, file = self.trial.dice, self.target.file
        self.target.restore()
        if dice.random() < 0.5:
            (file.parent / "CLEAN").unlink()
            mark = "RUNNING"
        else:
            mark = "CLEAN"
        if turn % _HIDES_EACH == 0:
            bit = dice.choice(self.hiding)
            self.target.flip(bit)
            return f"{mark}: rows hidden by bit {bit}"
        # Most pages of the file are free, or hold what was written over.
        page = dice.choice(dice.choice((self.target.pages, self.leaves))) * _PAGE
        kind = dice.choice(("count", "head", "zeros", "bytes"))
        if kind in ("count", "head"):
            count = [8 * _COUNT_AT + bit for bit in _COUNT_BITS]
            bit = 8 * page + dice.choice(count if kind == "count" else range(8 * _HEAD_BYTES))
            self.target.flip(bit)
            return f"{mark}: bit {bit} turned"
        if kind == "zeros":
            at, data = page + dice.choice((0, 0, 512 * dice.randrange(8))), bytes(512)
        else:
            data = dice.randbytes(dice.choice((1, 4, 16, 100)))
            at = page + dice.randrange(_PAGE - len(data))
        with file.open("r+b") as opened:
            opened.seek(at)
            opened.write(data)
        return f"{mark}: {kind}, {len(data)} bytes at {at}"


class Life:
    """The starts of one damaged store, until one serves all of it."""

    def __init__(self, base: Base, what: str, *, late: bool) -> None:
        self.base = base
        self.trial = base.trial
        self.kvd = base.kvd
        self.what = what
        self.env = {PROVE_LATE: "1"} if late else {}
        self.written: dict[str, object] = {}

    def live(self) -> None:
        """Start, ask, and start again if it ends, as often as that may happen."""
        for turn in range(_STARTS_MAX + 1):
            try:
                self.kvd.start(env=self.env)
                with Witness(self.kvd.port) as witness:
                    self._look(witness, turn)
            except NotListening:
                self._ended("before it listened")
            except DISCONNECTED:
                self._ended("while it was asked")
            else:
                return
        self.trial.check(False, f"{self.what}: it ends at each start: {self.kvd.stderr[-900:]}")

    def _ended(self, when: str) -> None:
        try:
            status = self.kvd.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Violation(f"{self.what}: it neither answers nor ends") from None
        self.trial.count("ended by a signal" if status < 0 else f"ended with {status}")
        right = status < 0 or status == _TRY_AGAIN
        received = f"{self.what}: it ended with {status} {when}: {self.kvd.stderr[-900:]}"
        self.trial.check(right and "Traceback" not in self.kvd.stderr, received)

    def _look(self, witness: Witness, turn: int) -> None:
        base, trial = self.base, self.trial
        self._same("who may read", witness.access(), base.access)
        self._same("the history", witness.history(base.indexes), base.history)
        early = witness.keys()
        if self._is_proved():
            self._same("a key that is proved", early, base.keys)
            trial.count("rebuilt" if self._is_rebuilt() else "found whole")
        else:
            for key, found in early.items():
                # A listing may lack some.
                expected = base.keys[key]
                if isinstance(found, list) and isinstance(expected, list):
                    right = set(found) <= set(expected)
                else:
                    right = found in (None, expected)
                trial.check(right, f"{self.what}: {key} is served as {found}")
            self._wait_for_proof()
        self._same("a key that is proved", witness.keys(), base.keys)
        self._same("a key written before", witness.read(list(self.written)), self.written)
        for key, node in witness.write(turn).items():
            trial.check(node is not None, f"{self.what}: {key} could not be written")
            self.written[key] = node
        self._same("a key written since", witness.read(list(self.written)), self.written)
        self._same("a key after writes", witness.keys(), base.keys)

    def _same(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            if isinstance(found, dict) and isinstance(expected, dict):
                found = {key: node for key, node in found.items() if node != expected[key]}
            self.trial.check(
                False,
                f"{self.what}: {what} is answered as {found!s:.500}\n{self.kvd.stderr[-900:]}",
            )

    def _is_rebuilt(self) -> bool:
        return "from log" in self.kvd.stderr or "from snapshot" in self.kvd.stderr

    def _is_proved(self) -> bool:
        return not self.env or self._is_rebuilt() or _COMPLETE in self.kvd.stderr

    def _wait_for_proof(self) -> None:
        """Wait for the end of the check in the background, or of the process."""
        with self.kvd._changed:
            self.kvd._changed.wait_for(
                lambda: _COMPLETE in self.kvd.stderr or self.kvd._ended, PATIENCE_S
            )
        if _COMPLETE not in self.kvd.stderr:
            raise OSError("it has ended")


def index_incomplete(trial: Trial) -> None:
    """Damage the index of a stopped store and ask for everything, before and after its proof."""
    base = Base(trial, trial.directory / "data")
    with base.kvd as kvd:
        for done in range(1, trial.rounds + 1):
            what = base.damage(done)
            Life(base, what, late=trial.dice.random() < 0.5).live()
            kvd.stop()
            trial.figures["damages"] = done
            trial.figures["wrong once proved"] = 0
            trial.progress(done)


EXPERIMENTS = (
    Experiment(
        "index-incomplete",
        "whatever is damaged in a stopped index: users and history are right from the first answer "
        "on, keys once they are proved, and of two starts in a row one serves",
        ("no-completeness",),
        *(4_000, 12, "damages", index_incomplete),
    ),
)
