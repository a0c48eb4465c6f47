"""A key space in memory on which commands are decided and applied."""

import pytest

from kvd.v2.errors import ApiError
from kvd.v2.rules import decide
from tests.support.model import Model

NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


class Space:
    """A key space that runs commands."""

    def __init__(self, *commands):
        self.model = Model()
        self.prev = None
        for command in commands:
            self.do(command)

    def do(self, command):
        """Return the change; the node that it replaced is in `prev`."""
        change = decide(self.model, command, self.model.index + 1, NOW_NS)
        self.prev = self.model.apply(change)
        return change

    def refused(self, command):
        """Return code and cause of a refusal, which has changed nothing."""
        before, index = self.model.tree(), self.model.index
        with pytest.raises(ApiError) as caught:
            self.do(command)
        assert caught.value.index == index == self.model.index
        assert self.model.tree() == before
        return caught.value.code, caught.value.cause
