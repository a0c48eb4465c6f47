"""Users, roles and whether they are enabled: `user`, `role`, `auth`."""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from kvd.client.errors import ApiError
from kvd.client.exchanges import json_of
from kvd.client.operations import JSON
from kvd.ctl.command import Call, Group, Verb, pass_call
from kvd.ctl.etcdctl.output import Json, json_bytes, plain, quoted, write
from kvd.ctl.failures import USAGE, Failure

if TYPE_CHECKING:
    from kvd.client.wire import Reply

user = Group("user", help="Show and change users.")
role = Group("role", help="Show and change roles.")
auth = Group("auth", help="Enable and disable users.")


def _verb(
    group: Group, name: str, text: str, argument: str
) -> Callable[[Callable[..., Any]], click.Command]:
    of_name = click.argument("args", nargs=-1, metavar=argument)
    verb = group.command(name, cls=Verb, explain=plain, help=text)
    return lambda function: verb(of_name(pass_call(function)))


def _send(call: Call, method: str, path: str, body: object = None) -> Reply:
    data = b"" if body is None else json_bytes(body)
    return call.session.call(method, f"/v2/auth/{path}", body=data, content_type=JSON)


def _name_of(args: tuple[str, ...], kind: str) -> str:
    if len(args) != 1 or not args[0]:
        raise Failure(f"Please provide a {kind}", USAGE)
    return args[0]


def _accept_none(args: tuple[str, ...]) -> None:
    if args:
        raise Failure("No arguments accepted", USAGE)


def _canonical(path: str) -> str:
    """Return a path as Go cleans it: from the root on, without `.`, `..` and doubled slashes."""
    clean = posixpath.normpath(f"/{path.lstrip('/')}")
    return f"{clean}/" if path.endswith("/") and clean != "/" else clean


def _user(name: str) -> str:
    return f"users/{quoted(name)}"


def _role(name: str) -> str:
    return f"roles/{quoted(name)}"


def _names(found: Sequence[Any] | None, kind: str) -> str:
    """Return names as lines; a listing has them alone, or as `{kind: name, ...}`."""
    names = [one if isinstance(one, str) else one[kind] for one in found or ()]
    return "".join(f"{name}\n" for name in names)


# Users.


@_verb(user, "list", "Print the names of all users.", "")
def user_list(call: Call, args: tuple[str, ...]) -> None:
    """Print the names of all users."""
    _accept_none(args)
    write(_names(json_of(_send(call, "GET", "users"))["users"], "user"))


@_verb(user, "get", "Print a user's roles.", "NAME")
def user_get(call: Call, args: tuple[str, ...]) -> None:
    """Print a user's roles."""
    answer = json_of(_send(call, "GET", _user(_name_of(args, "username"))))
    roles = [one if isinstance(one, str) else one["role"] for one in answer.get("roles") or ()]
    write(f"User: {answer['user']}\nRoles: {''.join(f' {one}' for one in roles)}\n")


def _new_password() -> str:
    """Return a password from the terminal, without echo, or from standard input."""
    if sys.stdin.isatty():
        from kvd.ctl.credentials import ask  # noqa: PLC0415 -- it loads termios

        return ask("a new password", "New password: ")
    write("New password: ")
    line = sys.stdin.readline().removesuffix("\n")
    write("\n")
    return line


@_verb(user, "add", "Create a user, or set the password of one.", "NAME[:PASSWORD]")
def user_add(call: Call, args: tuple[str, ...]) -> None:
    """Create a user."""
    name, colon, password = _name_of(args, "username").partition(":")
    if not name:
        raise Failure("Please provide a username", USAGE)
    if not colon:
        password = _new_password()
    _send(call, "PUT", _user(name), {"user": name, "password": password})
    write(f"User {name} created\n")


@_verb(user, "passwd", "Set the password of a user.", "NAME")
def user_passwd(call: Call, args: tuple[str, ...]) -> None:
    """Set the password of a user."""
    name = _name_of(args, "username")
    password = _new_password()
    reply = _send(call, "PUT", _user(name), {"user": name, "password": password})
    if reply.status != 200:  # it was not there, and is now: etcdctl has no words for that
        raise Failure("", USAGE)
    write("Password updated\n")


@_verb(user, "remove", "Remove a user.", "NAME")
def user_remove(call: Call, args: tuple[str, ...]) -> None:
    """Remove a user."""
    name = _name_of(args, "username")
    _send(call, "DELETE", _user(name))
    write(f"User {name} removed\n")


def _of_roles(name: str, text: str) -> None:
    """Make `user grant` or `user revoke`."""

    def change(call: Call, args: tuple[str, ...], roles: tuple[str, ...]) -> None:
        names = [one for text in roles for one in text.split(",") if one]
        if not names:
            raise Failure("No roles specified; please use `--roles`", USAGE)
        to = _name_of(args, "username")
        _send(call, "PUT", _user(to), {"user": to, name: names})
        write(f"User {to} updated\n")

    option = click.option("--roles", multiple=True, metavar="A,B", help="names of roles")
    _verb(user, name, text, "NAME")(option(change))


_of_roles("grant", "Give roles to a user.")
_of_roles("revoke", "Take roles from a user.")

# Roles.


@_verb(role, "list", "Print the names of all roles.", "")
def role_list(call: Call, args: tuple[str, ...]) -> None:
    """Print the names of all roles."""
    _accept_none(args)
    try:
        reply = _send(call, "GET", "roles")
    except ApiError as error:
        raise Failure(f"unexpected status code {error.status}", USAGE) from error
    write(_names(json_of(reply)["roles"], "role"))


@_verb(role, "get", "Print a role's rights.", "NAME")
def role_get(call: Call, args: tuple[str, ...]) -> None:
    """Print a role's rights."""
    answer = json_of(_send(call, "GET", _role(_name_of(args, "role name"))))
    rights: Json = answer.get("permissions", {}).get("kv", {})
    lines = [f"Role: {answer['role']}"]
    for title, kind in (("KV Read:", "read"), ("KV Write:", "write")):
        lines += [title, *(f"\t{pattern}" for pattern in rights.get(kind) or ())]
    write("\n".join(lines) + "\n")


@_verb(role, "add", "Create a role.", "NAME")
def role_add(call: Call, args: tuple[str, ...]) -> None:
    """Create a role."""
    name = _name_of(args, "role name")
    try:
        _send(call, "GET", _role(name))
    except ApiError:
        pass
    else:
        raise Failure(f"Role {name} already exists", USAGE)
    _send(call, "PUT", _role(name), {"role": name})
    write(f"Role {name} created\n")


@_verb(role, "remove", "Remove a role.", "NAME")
def role_remove(call: Call, args: tuple[str, ...]) -> None:
    """Remove a role."""
    name = _name_of(args, "role name")
    _send(call, "DELETE", _role(name))
    write(f"Role {name} removed\n")


def _of_rights(name: str, text: str) -> None:
    """Make `role grant` or `role revoke`."""

    def change(
        call: Call, args: tuple[str, ...], *, path: str, read: bool, write_: bool, readwrite: bool
    ) -> None:
        if not path:
            raise Failure("No path specified; please use `--path`", USAGE)
        if path != _canonical(path):
            raise Failure(f"Not canonical path; please use `--path={_canonical(path)}`", USAGE)
        if read + write_ + readwrite != 1:
            text = "Please specify exactly one of --read, --write or --readwrite"
            raise Failure(text, USAGE)
        to = _name_of(args, "role name")
        rights = {
            kind: [path]
            for kind, is_on in (("read", read), ("write", write_))
            if is_on or readwrite
        }
        _send(call, "PUT", _role(to), {"role": to, name: {"kv": rights}})
        write(f"Role {to} updated\n")

    made: Callable[..., Any] = change
    for option in (
        click.option("--path", default="", metavar="PATH", help="a key, or a prefix and *"),
        click.option("--read", is_flag=True, help="the right to read"),
        click.option("--write", "write_", is_flag=True, help="the right to write"),
        click.option("--readwrite", "--rw", is_flag=True, help="both"),
    ):
        made = option(made)
    _verb(role, name, text, "NAME")(made)


_of_rights("grant", "Give a right to a role.")
_of_rights("revoke", "Take a right from a role.")

# Whether they are enabled.


def _of_auth(name: str, method: str, text: str, done: str) -> None:
    """Make `auth enable` or `auth disable`."""

    def change(call: Call, args: tuple[str, ...]) -> None:
        _accept_none(args)
        _send(call, method, "enable")
        write(f"Authentication {done}\n")

    _verb(auth, name, text, "")(change)


_of_auth("enable", "PUT", "Let users and roles decide.", "Enabled")
_of_auth("disable", "DELETE", "Let everyone do everything.", "Disabled")
