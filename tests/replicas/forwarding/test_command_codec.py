"""Commands and refusals pass a link unchanged, and nothing else is taken for one."""

from random import Random

import cbor2
import pytest

from kvd.replicas.forwarding.command_codec import (
    from_plain,
    plain,
    plain_refusal,
    refusal_from_plain,
    size_of,
)
from kvd.v2.commands import CompareAndSwap, Condition, Create, Delete, Set, Transaction
from kvd.v2.documents.auth_commands import DeleteRole, PutRole, PutUser, Switch
from kvd.v2.documents.auth_json import Permissions, Role
from kvd.v2.documents.member_commands import PutMember
from kvd.v2.errors import TABLE, ApiError, RouteError
from tests.support.stores import random_command

TRANSACTION = Transaction(
    b"/a/b/c",
    (Condition(b"/a"), Condition(b"/b", True, False, b"1", 7, 6), Condition(b"/c", exists=False)),
    (Set(b"/a", b"1" * 300, ttl_s=1 << 70), Delete(b"/b", dir=True)),
)
ENTRIES = (
    PutUser("al", b"hash", ("r", "s"), None, ("t",)),
    PutRole(Role("r", Permissions(("/*",), None), Permissions(("/a",), ()))),
    DeleteRole("\N{SNOWMAN}"),
    Switch(on=True),
    PutMember(1 << 63, ("http://h1:2380",)),
)


def passed(item):
    return cbor2.loads(cbor2.dumps(item))


def commands():
    dice = Random(1)
    return [*(random_command(dice) for _ in range(300)), TRANSACTION, *ENTRIES]


def test_every_command_comes_out_as_it_went_in():
    for command in commands():
        found = from_plain(passed(plain(command)))
        assert (type(found), found) == (type(command), command)


def test_a_command_with_a_field_of_another_type_is_none():
    refused = 0
    for command in commands():
        item = plain(command)
        for place in range(len(item)):
            for wrong in ("text", 1.5, [1], {}, None, -1, b"bytes", True):
                changed = [*item[:place], wrong, *item[place + 1 :]]
                try:
                    found = from_plain(passed(changed))
                except ValueError:
                    refused += 1
                else:
                    assert plain(found) == passed(plain(found)) == changed
    assert refused > 1000


WRONG = {
    "nothing": [],
    "no list": 7,
    "no number": [b"/a"],
    "a number that is no command": [77, b"/a"],
    "a boolean for a number": [True, b"/a", b"1", False, None, False],
    "a field less": plain(Set(b"/a", b"1"))[:-1],
    "a field more": [*plain(Create(b"/a", b"1")), None],
    "a transaction in a transaction": [8, b"", [], [plain(TRANSACTION)]],
    "users in a transaction": [8, b"", [], [plain(ENTRIES[0])]],
    "a condition that is none": [8, b"", [[b"/a"]], []],
    "an unknown change of documents": [9, 77, "al"],
}


@pytest.mark.parametrize("item", WRONG.values(), ids=WRONG)
def test_what_is_no_command_is_refused(item):
    with pytest.raises(ValueError, match="no "):
        from_plain(passed(item))


def test_a_refusal_comes_out_as_it_went_in():
    placed = ApiError(101, b"[1 != 2]", 7)
    placed.place = "op", 3
    for refusal in (placed, *(ApiError(code, b"\xff", 9, "limit") for code in TABLE)):
        found = refusal_from_plain(passed(plain_refusal(refusal)))
        assert isinstance(found, ApiError)
        assert (found.args, found.limit, found.place) == (
            refusal.args,
            refusal.limit,
            refusal.place,
        )
    found = refusal_from_plain(passed(plain_refusal(RouteError(409, "no"))))
    assert isinstance(found, RouteError)
    assert found.args == (409, "no")


@pytest.mark.parametrize("item", [[], 7, [1, b"", 0, "", None], [101, "", 0, "", None], [0, "x"]])
def test_what_is_no_refusal_is_refused(item):
    with pytest.raises(ValueError, match="no refusal"):
        refusal_from_plain(item)


def test_the_size_of_a_command_is_about_that_of_its_bytes():
    for command in (*commands(), CompareAndSwap(b"/a", b"v" * 1000, b"p" * 1000, 0)):
        encoded = len(cbor2.dumps(plain(command)))
        assert encoded - 100 <= size_of(command) <= 2 * encoded + 200
