"""auth_commands.py and auth_json.py: statuses and texts are those that etcd 3.4.23 answered.

The recorded scenarios of tests/conformance say the same over HTTP, and more.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.storage.format.records import Kind
from kvd.v2.documents import auth
from kvd.v2.documents.auth_commands import DeleteRole, DeleteUser, PutRole, PutUser, Switch
from kvd.v2.documents.auth_json import Permissions, Role, read_role, read_user
from kvd.v2.errors import RouteError
from tests.support.auth_state import People

NOT_UPDATED = "auth: User not updated. Use grant/revoke/password to update the user."
ROLE_NOT_UPDATED = "auth: Role not updated. Use grant/revoke to update the role."
NO_PASSWORD = "auth: Cannot create user {} with an empty password"
IS_ROOT = "auth: Cannot modify role root: is root role."


def asked(people, command):
    """What becomes of a command: the status with the roles or permissions, or with the message."""
    before = dict(people.rows)
    try:
        status, body = people.do(command)
    except RouteError as refusal:
        assert people.rows == before
        return refusal.status, refusal.message
    if not body:
        return status, None
    document = json.loads(body)
    return status, document["roles"] if "user" in document else document["permissions"]["kv"]


def user(name="al", secret=None, **lists):
    return PutUser(name, secret, **lists)


def role(name="r", **fields):
    return PutRole(Role(name, **{key: Permissions(*lists) for key, lists in fields.items()}))


STORIES = {
    "a user without roles": [
        (user(), (400, NO_PASSWORD.format("al"))),
        (user(grant=("r",)), (404, "auth: User al does not exist.")),
        (user(secret=b"1"), (201, None)),
        (user(), (200, [])),  # null became a list
        (user(), (400, NOT_UPDATED)),
        (user(secret=b"2"), (200, [])),
        (user(secret=b"2"), (400, NOT_UPDATED)),  # over HTTP no two hashes are the same
    ],
    "a user with roles": [
        (user(roles=("r",)), (400, NO_PASSWORD.format("al"))),
        (user(secret=b"1", roles=("r", "q", "r")), (200, ["r", "q", "r"])),
        (user(secret=b"1", roles=("r",)), (409, "auth: User al already exists.")),
        (user(roles=("r",)), (400, NO_PASSWORD.format("al"))),
        (user(grant=("s",)), (200, ["q", "r", "s"])),
    ],
    "grants and revokes": [
        (user(secret=b"1"), (201, None)),
        (user(grant=("b", "a")), (200, ["a", "b"])),
        (user(grant=("c", "a")), (409, "auth: Granting duplicate role a for user al")),
        (user(grant=("c", "c")), (409, "auth: Granting duplicate role c for user al")),
        (user(revoke=("c",)), (409, "auth: Revoking ungranted role c for user al")),
        (user(grant=("c",), revoke=("c",)), (400, NOT_UPDATED)),
        (user(grant=("c",), revoke=("c", "a")), (200, ["b"])),
        (user(secret=b"2", revoke=("b",)), (200, [])),
    ],
    "the user root": [
        (DeleteUser("root"), (404, "auth: User root does not exist")),
        (Switch(on=True), (409, "auth: No root user available, please create one")),
        (Switch(on=False), (409, "auth: already disabled")),
        (user("root", b"1", roles=("z",)), (200, ["z", "root"])),
        (user("root", revoke=("root",)), (200, ["z"])),
        (user("root", revoke=("root",)), (200, ["z"])),  # it has come back
        (user("root", grant=("root",)), (409, "auth: Granting duplicate role root for user root")),
        (Switch(on=True), (200, None)),
        (Switch(on=True), (409, "auth: already enabled")),
        (DeleteUser("root"), (403, "auth: Cannot delete root user while auth is enabled.")),
        (Switch(on=False), (200, None)),
        (DeleteUser("root"), (200, None)),
        (DeleteUser("root"), (404, "auth: User root does not exist")),
    ],
    "a role": [
        (role(permissions=[("/b", "/a")]), (201, {"read": ["/b", "/a"], "write": None})),
        (role(), (409, "auth: Role r already exists.")),
        (role(grant=[("/a",)]), (409, "auth: Granting duplicate read permission /a")),
        (role(grant=[None, ("/a", "/a")]), (409, "auth: Granting duplicate write permission /a")),
        (role(grant=[None, ("/a",)]), (200, {"read": ["/a", "/b"], "write": ["/a"]})),
        (role(revoke=[("/x",)]), (400, ROLE_NOT_UPDATED)),
        (
            role(grant=[("/c",)], revoke=[("/a", "/x"), ("/a",)]),
            (200, {"read": ["/b", "/c"], "write": []}),
        ),
        (DeleteRole("r"), (200, None)),
        (DeleteRole("r"), (404, "auth: Role r doesn't exist.")),
        (role(revoke=[("/x",)]), (404, "auth: Role r does not exist.")),
    ],
    "a role that was never given permissions": [
        (role(), (201, {"read": None, "write": None})),
        (role(revoke=[("/x",)]), (200, {"read": [], "write": []})),
        (role(revoke=[("/x",)]), (400, ROLE_NOT_UPDATED)),
    ],
    "the role root": [
        (role("root"), (403, IS_ROOT)),
        (role("root", grant=[("/a",)]), (403, IS_ROOT)),
        (DeleteRole("root"), (403, IS_ROOT)),
    ],
    "a guest that was made before": [
        (user("root", b"1"), (201, ["root"])),
        (role("guest", permissions=[("/open",)]), (201, {"read": ["/open"], "write": None})),
        (Switch(on=True), (200, None)),
        (role("guest"), (409, "auth: Role guest already exists.")),
    ],
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_statuses_and_texts_are_etcds(story):
    people = People()
    for number, (command, expected) in enumerate(STORIES[story], 1):
        assert asked(people, command) == expected, f"step {number}"


def test_what_a_role_was_asked_with_is_shown_until_it_is_changed():
    people = People()
    people.do(role(grant=[None], revoke=[(), None]))
    shown = b'"permissions":{"kv":{"read":null,"write":null}}'
    empty = b'"grant":{"kv":{"read":null,"write":null}},"revoke":{"kv":{"read":[],"write":null}}'
    assert b"".join(auth.role_json(people, print, name="r")) == b'{"role":"r",%b,%b}\n' % (
        shown,
        empty,
    )
    people.do(role(grant=[("/a",)]))
    assert b"grant" not in b"".join(auth.role_json(people, print, name="r"))


def test_a_password_stays_where_no_other_one_is_given():
    people = People()
    people.do(user(secret=b"1"))
    people.do(user(grant=("r",)))
    assert auth.find_user(people, "al").secret == b"1"
    people.do(user(secret=b"2", revoke=("r",)))
    assert auth.find_user(people, "al").secret == b"2"
    assert {document.kind for document in people.rows.values()} == {Kind.AUTH}


names = st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(tuple)


@settings(deadline=None)
@given(st.lists(st.tuples(names, names), max_size=5))
def test_what_is_granted_and_not_revoked_is_held(changes):
    people = People()
    people.do(user(secret=b"1"))
    people.do(role())
    held: set[str] = set()
    for grant, revoke in changes:
        after = (held | set(grant)) - set(revoke)
        given = user(grant=grant, revoke=revoke)
        status, roles = asked(people, given)
        if status == 200:
            assert roles == sorted(after)
            assert not held & set(grant)
            held = after
        assert set(auth.find_user(people, "al").roles or ()) == held
        asked(people, role(grant=[grant, grant], revoke=[revoke, revoke]))
        permissions = auth.find_role(people, "r").permissions
        assert permissions.read == permissions.write


# Documents


USERS = (
    *("", "nope", "[]", "5", '"al"', '{"user":"al"', '{"user":"al",}', "{'user':'al'}"),
    *('{"user":5}', '{"user":"al","password":5}', '{"user":"al","grant":"x"}'),
    *('{"user":"al","grant":[1]}', '{"user":"al","roles":{}}', '{"user":"al","x":NaN}'),
)
ROLES = (
    *("", "nope", "[]", '{"role":5}', '{"role":"al","grant":[]}', '{"role":"al","permissions":[]}'),
    *('{"role":"al","grant":{"kv":[]}}', '{"role":"al","revoke":{"kv":{"read":"x"}}}'),
)


@pytest.mark.parametrize(
    ("read", "body"),
    [*((read_user, body) for body in USERS), *((read_role, body) for body in ROLES)],
)
def test_what_is_no_such_document_is_refused(read, body):
    with pytest.raises(RouteError) as raised:
        read(body.encode(), "al")
    assert (raised.value.status, raised.value.message) == (400, "Invalid JSON in request body.")


@pytest.mark.parametrize("body", ["null", "{}", '{"user":null}', '{"user":"bo"}'])
def test_a_document_of_another_user_is_refused(body):
    with pytest.raises(RouteError, match="User JSON name does not match the name in the URL"):
        read_user(body.encode(), "al")
    with pytest.raises(RouteError, match="Role JSON name does not match the name in the URL"):
        read_role(body.replace("user", "role").encode(), "al")


def test_a_document_may_not_set_and_change_at_once():
    for body in (
        '{"user":"al","roles":["a"],"grant":["b"]}',
        '{"user":"al","roles":["a"],"revoke":[""]}',
    ):
        with pytest.raises(RouteError, match="contains both roles and grant/revoke"):
            read_user(body.encode(), "al")
    assert read_user(b'{"user":"al","roles":["a"],"grant":[],"revoke":null}', "al").roles == ("a",)
    kv = '{"kv":{"read":["/a"]}}'
    for verb in ("grant", "revoke"):
        with pytest.raises(RouteError, match="contains both permissions and grant/revoke"):
            read_role(f'{{"role":"r","permissions":{kv},"{verb}":{kv}}}'.encode(), "r")


def test_names_of_fields_match_whatever_their_case_and_null_is_no_list():
    body = b'{"USER":"al","passWord":"x","password":null,"Roles":null,"GRANT":[null]} and more'
    assert read_user(body, "al") == ("al", "x", None, ("",), None)
    body = (
        b'{"role":"r","permissions":{"KV":{"READ":["/a"],"read":["/b"]}},"grant":{},"revoke":null}'
    )
    assert read_role(body, "r") == Role("r", Permissions(("/b",), None), Permissions(), None)
