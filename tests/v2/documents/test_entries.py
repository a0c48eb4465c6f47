"""entries.py: one table of commands, each a plain value that another member can decide."""

import cbor2
import pytest

from kvd.storage.format.records import Document, Kind
from kvd.v2.documents.auth_commands import DeleteRole, DeleteUser, PutRole, PutUser, Switch
from kvd.v2.documents.auth_json import Permissions, Role
from kvd.v2.documents.decision import Reply
from kvd.v2.documents.entries import decide_entries, from_plain, plain
from kvd.v2.documents.member_commands import (
    AddMember,
    PublishMember,
    PutMember,
    RemoveMember,
)
from tests.support.auth_state import People

COMMANDS = [
    PutUser("al", b"hash", ("r",), None, ()),
    PutUser("al", None, None, ("a", "b"), ("c",)),
    DeleteUser("al"),
    PutRole(Role("r", Permissions(("/a",), ()))),
    PutRole(Role("r", Permissions(), Permissions(("/a",), None), Permissions((), ("/b*",)))),
    PutRole(Role()),
    DeleteRole("r"),
    Switch(on=True),
    Switch(on=False),
    PutMember(2**64 - 1, ("http://a:1", "http://b:2")),
    PublishMember(1, "h1", ("http://h1:2380",), ("http://h1:2379", "http://h1:4001")),
    AddMember(2**64 - 1, ("http://h2:2380",)),
    RemoveMember(7),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_command_comes_back_from_what_members_send(command):
    received = from_plain(cbor2.loads(cbor2.dumps(plain(command))))
    assert received == command
    assert type(received) is type(command)


@pytest.mark.parametrize("item", [None, 1, [], [0], [10, 1], [1], [3, 1], [3, ["r", 1]], [5, 1, 2]])
def test_what_is_no_command_is_refused(item):
    with pytest.raises(ValueError, match=r"^no command: "):
        from_plain(item)


def test_each_command_is_decided_by_its_own_rules():
    people = People()
    assert decide_entries(people, PutRole(Role("r"))).reply.status == 201
    (document,) = decide_entries(people, PutMember(0xAB, ("http://a:1",))).documents
    assert document == Document(Kind.MEMBER, "member", "ab", b'{"peerURLs":["http://a:1"]}')
    assert decide_entries(people, PutMember(1, ())).reply == Reply(204)
