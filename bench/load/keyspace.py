"""The keys of a load, in an order that a seed chooses."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

NUMBER_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Keyspace:
    """The keys of one run, `/bench/<name>/k0000000` and on, and the order of visiting them.

    `key(n)` steps through all keys in a fixed scattered order (a stride without common factor), so
    that both generators, the one in Lua too, visit the same keys and each key once in `keys` steps.
    """

    name: str
    keys: int
    value_bytes: int
    stride: int
    start: int
    directories: int = 0
    """Into so many subdirectories the keys are spread; 0 leaves them in the one."""

    @classmethod
    def make(
        cls, name: str, *, keys: int, value_bytes: int, seed: int, directories: int = 0
    ) -> Keyspace:
        """Choose the order from the seed; values are at least as long as their number."""
        chance = random.Random(seed)
        stride = chance.randrange(1, keys + 1)
        while math.gcd(stride, keys) != 1:
            stride += 1
        start = chance.randrange(keys)
        return cls(name, keys, max(value_bytes, NUMBER_DIGITS), stride, start, directories)

    @property
    def directory(self) -> str:
        """The request path of the directory that holds all keys."""
        return f"/v2/keys/bench/{self.name}"

    def key(self, n: int) -> int:
        """Return the number of the key visited in step `n`."""
        return (n * self.stride + self.start) % self.keys

    def path(self, key: int) -> str:
        """Return the request path of a key."""
        if self.directories:
            return f"{self.directory}/d{key % self.directories:03d}/k{key:07d}"
        return f"{self.directory}/k{key:07d}"

    def value(self, number: int) -> bytes:
        """Return the value that write `number` writes; number 0 is the one keys start with."""
        return b"%012d" % number + self.padding

    @property
    def padding(self) -> bytes:
        """The part after the number in every value."""
        return b"x" * (self.value_bytes - NUMBER_DIGITS)

    def lane_keys(self, lane: int, lanes: int) -> list[int]:
        """Return the keys that belong to one connection, in the order in which it visits them."""
        return [key for key in map(self.key, range(self.keys)) if key % lanes == lane]
