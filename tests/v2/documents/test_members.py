"""Members in the log: what is registered, announced and removed, and by which rules."""

import json

import pytest

from kvd.storage.format.records import Document, Kind
from kvd.v2.documents.decision import Reply
from kvd.v2.documents.entries import decide_entries
from kvd.v2.documents.member_commands import (
    AddMember,
    PublishMember,
    PutMember,
    RemoveMember,
    publishing,
)
from kvd.v2.documents.members import (
    Member,
    is_removed,
    list_body,
    machines_body,
    registered,
    replicas,
)
from kvd.v2.errors import RouteError
from tests.support.auth_state import People

H1 = Member("h1", 0x10, ("http://h1:2379",), ("http://h1:2380",))
H2 = Member("h2", 0x9, ("http://h2:2379", "http://h2:4001"), ("http://h2:2380",))


@pytest.fixture
def state():
    """No members."""
    return People()


def do(state, command):
    documents, reply = decide_entries(state, command)
    for document in documents:
        if document.content is None:
            del state.rows[document.what, document.name]
        else:
            state.rows[document.what, document.name] = document
    return reply


def publish(state, member):
    command = publishing(state, member)
    assert command is not None
    assert do(state, command) == Reply(204)


def refusal(state, command):
    """The status and the text of a refusal, which changes nothing."""
    before = dict(state.rows)
    with pytest.raises(RouteError) as refused:
        do(state, command)
    assert state.rows == before
    return refused.value.status, refused.value.message


def test_replicas_register_themselves_and_are_listed_by_their_ids(state):
    publish(state, H1)
    publish(state, H2)
    assert registered(state) == [H2, H1]
    assert replicas(state, H1) == [H2, H1]
    assert machines_body(registered(state)) == (b"http://h1:2379, http://h2:2379, http://h2:4001")
    assert list_body(registered(state)) == (
        b'{"members":[{"id":"9","name":"h2","peerURLs":["http://h2:2380"],'
        b'"clientURLs":["http://h2:2379","http://h2:4001"]},'
        b'{"id":"10","name":"h1","peerURLs":["http://h1:2380"],"clientURLs":["http://h1:2379"]}]}\n'
    )


def test_a_replica_that_is_registered_as_it_is_has_nothing_to_say(state):
    publish(state, H1)
    assert publishing(state, H1) is None
    moved = H1._replace(client_urls=("http://new:2379",))
    publish(state, moved)
    assert registered(state) == [moved]


def test_a_replica_is_listed_before_it_is_registered(state):
    publish(state, H2)
    assert replicas(state, H1) == [H2, H1]


def test_a_new_replica_takes_the_place_of_one_that_was_at_its_peer_url(state):
    publish(state, H2)
    publish(state, H1)
    again = H1._replace(member_id=0x77)  # its directory was empty
    publish(state, again)
    assert registered(state) == [H2, again]


def test_an_announced_member_is_there_until_it_comes_under_its_own_id(state):
    publish(state, H1)
    reply = do(state, AddMember(0xAB, H2.peer_urls))
    assert reply.status == 201
    assert reply.body == (b'{"id":"ab","name":"","peerURLs":["http://h2:2380"],"clientURLs":[]}\n')
    announced = Member("", 0xAB, (), H2.peer_urls)
    assert registered(state) == [H1, announced]
    publish(state, H2)
    assert registered(state) == [H2, H1]


def test_a_peer_url_belongs_to_one_member(state):
    publish(state, H1)
    publish(state, H2)
    taken = 409, "membership: peerURL exists"
    assert refusal(state, AddMember(1, ("http://x:1", *H2.peer_urls))) == taken
    assert refusal(state, PutMember(H1.member_id, H2.peer_urls)) == taken


def test_the_peer_urls_of_a_replica_can_be_changed(state):
    publish(state, H1)
    publish(state, H2)
    assert do(state, PutMember(H1.member_id, ("http://n:1",))) == Reply(204)
    assert do(state, PutMember(H1.member_id, ("http://n:1",))) == Reply(204)
    assert registered(state) == [H2, H1._replace(peer_urls=("http://n:1",))]


def test_a_removed_member_is_gone_for_ever(state):
    publish(state, H1)
    publish(state, H2)
    assert do(state, RemoveMember(H2.member_id)) == Reply(204)
    assert registered(state) == [H1]
    assert is_removed(state, H2.member_id)
    assert not is_removed(state, H1.member_id)
    gone = 410, "Member permanently removed: 9"
    assert refusal(state, RemoveMember(H2.member_id)) == gone
    assert refusal(state, PublishMember(*H2[1::-1], H2.peer_urls, H2.client_urls)) == gone
    assert refusal(state, PutMember(H2.member_id, ("http://n:1",))) == (
        500,
        "Internal Server Error",
    )
    assert publishing(state, H2) is None


def test_the_last_member_and_one_that_is_not_there_are_not_removed(state):
    publish(state, H1)
    assert refusal(state, RemoveMember(0xAB)) == (404, "No such member: ab")
    assert refusal(state, RemoveMember(H1.member_id)) == (500, "Internal Server Error")


def test_a_server_alone_logs_its_peer_urls_and_nothing_else(state):
    (document,) = decide_entries(state, PutMember(0x10, ("http://n:1",))).documents
    assert document == Document(Kind.MEMBER, "member", "10", b'{"peerURLs":["http://n:1"]}')
    do(state, PutMember(0x10, ("http://n:1",)))
    (document,) = decide_entries(state, PutMember(0x10, ("http://o:1",))).documents
    assert json.loads(document.content) == {"peerURLs": ["http://o:1"]}
    assert H1.as_changed(state).peer_urls == ("http://n:1",)
    # It becomes a replica.
    publish(state, H1)
    assert registered(state) == [H1]
