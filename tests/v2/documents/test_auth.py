"""kvd/v2/documents/auth.py: rights of users, and documents of users and roles."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.v2.documents import auth
from kvd.v2.documents.auth import Grants, below, roles_allow
from kvd.v2.documents.auth_commands import PutRole, PutUser, Switch
from kvd.v2.documents.auth_json import Permissions, Role
from tests.support.auth_state import People

# Pattern, key, whether it matches the key alone, whether it allows what is recursive.
PATTERNS = [
    ("/a", b"/a", True, False),
    ("/a", b"/a/", False, False),
    ("/a", b"/a/b", False, False),
    ("/a", b"/A", False, False),
    ("/a*", b"/a", True, True),
    ("/a*", b"/a/", True, True),
    ("/a*", b"/ab/c", True, True),
    ("/a*", b"/", False, False),
    ("/a/*", b"/a", False, False),
    ("/a/*", b"/a/", True, True),
    ("/a/*", b"/a/b/c", True, True),
    ("/*", b"/", True, True),
    ("/*", b"", False, False),
    ("*", b"", True, True),
    ("*", b"/a", True, True),
    ("", b"", False, False),
    ("", b"/a", False, False),
    ("/a*b", b"/a*b", True, False),
    ("/a*b", b"/aXb", False, False),
    ("/a**", b"/a*c", True, True),
    ("/a**", b"/ab", False, False),
    ("/\u00e9*", "/\u00e9t\u00e9".encode(), True, True),
    ("/\ufffd", b"/\xff", False, False),
    ("/*", b"/\xff", True, True),
]


def reader(*patterns):
    return Role("r", Permissions(read=patterns))


@pytest.mark.parametrize(("pattern", "key", "alone", "recursive"), PATTERNS, ids=repr)
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_a_pattern_ends_in_a_star_or_is_the_key(pattern, key, alone, recursive, write):
    role = Role("r", Permissions(write=(pattern,)) if write else Permissions(read=(pattern,)))
    assert Grants(role).allow(key, write=write, recursive=False) == alone
    assert Grants(role).allow(key, write=write, recursive=True) == recursive
    assert not Grants(role).allow(key, write=not write, recursive=False)


keys = st.text("/ab\u00e9", max_size=5).map(str.encode)
patterns = st.text("/ab\u00e9*", max_size=5)


@given(st.lists(patterns, max_size=4), st.lists(patterns, max_size=4), keys, st.booleans())
def test_more_patterns_allow_no_less_and_what_is_recursive_is_allowed_alone(one, more, key, wide):
    def may(held, *, recursive):
        return Grants(reader(*held)).allow(key, write=False, recursive=recursive)

    assert may([*one, *more], recursive=wide) == (
        may(one, recursive=wide) or may(more, recursive=wide)
    )
    if may(one, recursive=True):
        assert may(one, recursive=False)
        assert any(p.endswith("*") and key.startswith(p[:-1].encode()) for p in one)
    elif may(one, recursive=False):
        assert key.decode() in one


def test_the_role_root_allows_everything_and_one_without_patterns_nothing():
    for key in (b"", b"/", b"/a"):
        for write in (False, True):
            assert Grants(auth.find_role(People(), "root")).allow(key, write=write, recursive=True)
            for permissions in (Permissions(), Permissions((), ())):
                assert not Grants(Role("r", permissions)).allow(key, write=write, recursive=False)


def test_one_role_is_enough_and_one_that_does_not_exist_is_nothing():
    roles = {"a": Grants(reader("/a")), "b": Grants(reader("/b*"))}

    def may(key, *, recursive=False, names=("none", "a", "b"), write=False):
        return roles_allow(names, roles.get, key, write=write, recursive=recursive)

    assert may(b"/a")
    assert not may(b"/a", write=True)
    assert may(b"/b", recursive=True)
    assert not may(b"/a", recursive=True)
    assert not may(b"/a", names=())
    assert not may(b"/a", names=("none",))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [(["/a"], False), (["/a/"], False), (["/a*"], True), (["/a/*"], True), (["/a/b*"], False)],
    ids=repr,
)
@pytest.mark.parametrize("key", [b"/a", b"/a/"])
def test_children_are_allowed_by_a_prefix_of_all_their_paths(patterns, expected, key):
    names, find = ["r"], {"r": Grants(reader(*patterns))}.get
    assert roles_allow(names, find, below(key), write=False, recursive=True) == expected


def listed(render, people, **options):
    return b"".join(render(people, lambda _: None, **options))


def test_lists_are_sorted_by_name_and_leave_out_roles_that_do_not_exist():
    people = People()
    for name in ("bo", "Al", "\u00e9", "_hidden"):
        people.do(PutUser(name, b"hash", ("r", "none")))
        people.do(PutRole(Role(name)))
    people.do(PutRole(Role("r", Permissions(("/a",), None))))
    role = b'{"role":"r","permissions":{"kv":{"read":["/a"],"write":null}}}'
    users = b",".join(
        b'{"user":"%b","roles":[%b]}' % (n.encode(), role)
        for n in ("Al", "_hidden", "bo", "\u00e9")
    )
    assert listed(auth.users_json, people) == b'{"users":[%b]}\n' % users
    roles = listed(auth.roles_json, people)
    shown = [
        roles.index(b'"role":"%b"' % name)
        for name in (b"Al", b"_hidden", b"bo", b"r", b"root", b"\xc3\xa9")
    ]
    assert shown == sorted(shown)


@pytest.mark.parametrize("render", [auth.users_json, auth.roles_json], ids=["users", "roles"])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_of_very_many_few_are_read_and_sorted_at_once(monkeypatch, render, count):
    """A hundred thousand would stop everybody else for a second."""
    monkeypatch.setattr(auth, "_RUN", 8)
    monkeypatch.setattr(auth, "_PIECE", 4)
    read = kept = 0

    class Counted(People):
        def each_document(self, what):
            nonlocal read
            for document in super().each_document(what):
                read += 1
                yield document

        def document(self, what, name):
            nonlocal read
            read += 1
            return super().document(what, name)

    def keep(size):
        nonlocal kept
        kept += size

    people = Counted()
    names = [f"n{number * 37 % 101:03}" for number in range(count)]
    for name in names:
        people.do(PutUser(name, b"hash") if render is auth.users_json else PutRole(Role(name)))
    body, most = b"", 0
    read = 0
    for piece in render(people, keep):
        body += piece
        most, read = max(most, read), 0
    (shown,) = json.loads(body).values()
    own = [] if render is auth.users_json else ["root"]
    assert [next(iter(item.values())) for item in shown or []] == sorted([*names, *own])
    assert most <= 4
    assert kept == sum(len(name) + 64 for name in names)


def test_no_hash_is_ever_shown():
    people = People()
    people.do(PutUser("root", b"SECRET"))
    changed = people.do(PutUser("root", b"SECRET2"))
    for body in (
        changed.body,
        listed(auth.users_json, people),
        listed(auth.user_json, people, name="root"),
    ):
        assert b"SECRET" not in body
        assert b"password" not in body
    assert not any(b"SECRET" in document.content for document in people.each_document("user"))


def test_users_are_asked_for_from_the_switch_on():
    people = People()
    assert not auth.is_enabled(people)
    people.do(PutUser("root", b"hash"))
    people.do(Switch(on=True))
    assert auth.is_enabled(people)
    assert auth.find_role(people, "guest").permissions == Permissions(("/*",), ("/*",))
    people.do(Switch(on=False))
    assert not auth.is_enabled(people)
    assert auth.find_role(people, "guest") is not None


def test_of_very_many_patterns_each_counts():
    names = [f"/{n:05}" for n in range(15_000)]
    grants = Grants(reader(*names[::2], *(f"{name}/*" for name in names[1::2])))
    for n in (0, 1, 7_500, 7_501, 14_998, 14_999):
        key = names[n].encode()
        assert grants.allow(key, write=False, recursive=False) == (n % 2 == 0)
        assert grants.allow(key + b"/x", write=False, recursive=True) == (n % 2 == 1)
    assert not grants.allow(b"/15000", write=False, recursive=False)
