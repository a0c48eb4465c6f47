"""The cluster: `cluster-health` and `member`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import sleep
from typing import Any

import click

from kvd.client.errors import ApiError, KvdError
from kvd.client.exchanges import json_of
from kvd.client.operations import JSON
from kvd.ctl.command import Call, Group, Verb, pass_call
from kvd.ctl.etcdctl.output import explained, json_bytes, plain, quoted, write
from kvd.ctl.failures import UNHEALTHY, USAGE, Failure

_CHECK_S = 10


@click.command(cls=Verb, explain=explained, help="Check the health of the cluster's members.")
@click.argument("args", nargs=-1, metavar="")
@click.option("--forever", "-f", is_flag=True, help="every 10 seconds, until Ctrl-C")
@pass_call
def cluster_health(call: Call, args: tuple[str, ...], *, forever: bool) -> None:
    """Check the health of the cluster's members."""
    del args  # ignored, as by etcdctl
    call.given["no_sync"] = True  # that there is no server is status 4, as it is without sync
    try:
        members = _members(call)
    except KvdError:
        write("cluster may be unhealthy: failed to list members\n")
        raise
    try:
        while True:
            healthy = sum(_is_healthy(call, member, len(members)) for member in members)
            states = {len(members): "healthy", 0: "unavailable"}
            write(f"cluster is {states.get(healthy, 'degraded')}\n")
            if not forever:
                break
            write(f"\nnext check after {_CHECK_S} second...\n\n")
            sleep(_CHECK_S)
    except KeyboardInterrupt:
        return
    if healthy != len(members):
        raise click.exceptions.Exit(UNHEALTHY)


def _members(call: Call) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = json_of(call.session.call("GET", "/v2/members"))["members"]
    return members


def _is_healthy(call: Call, member: dict[str, Any], count: int) -> bool:
    """Check one member, and say how it is. The only one is checked where it has answered."""
    name, urls = member["id"], member.get("clientURLs") or []
    if not urls:
        write(f"member {name} is unreachable: no available published client urls\n")
        return False
    for url in call.settings.endpoints[:1] if count == 1 else urls:
        try:
            answer = _health(call, url, is_own=count == 1)
        except (KvdError, ValueError) as error:
            write(f"failed to check the health of member {name} on {url}: {error}\n")
            continue
        word = "healthy" if answer in ("true", True) else "unhealthy"
        write(f"member {name} is {word}: got {word} result from {url}\n")
        return word == "healthy"
    write(f"member {name} is unreachable: [{' '.join(urls)}] are all unreachable\n")
    return False


def _health(call: Call, url: str, *, is_own: bool) -> object:
    if is_own:
        return json_of(call.session.call("GET", "/health")).get("health")
    from kvd.ctl.session import Session  # noqa: PLC0415 -- for clusters alone
    from kvd.ctl.settings import Settings  # noqa: PLC0415

    other = Session(Settings({**call.given, "endpoints": url}))
    try:
        return json_of(other.call("GET", "/health")).get("health")
    finally:
        other.close()


member = Group("member", help="Show and change the members of a cluster.")


def _wrong(text: str) -> Failure:
    return Failure(text, USAGE)


def _member_verb(
    name: str, text: str, arguments: str
) -> Callable[[Callable[..., Any]], click.Command]:
    argument = click.argument("args", nargs=-1, metavar=arguments)
    verb = member.command(name, cls=Verb, explain=plain, help=text)
    return lambda function: verb(argument(pass_call(function)))


@_member_verb("list", "Print the members.", "")
def member_list(call: Call, args: tuple[str, ...]) -> None:
    """Print the members."""
    if args:
        raise _wrong("No arguments accepted")
    leader = json_of(call.session.call("GET", "/v2/members/leader"))["id"]
    lines = []
    for one in _members(call):
        peers = ",".join(one.get("peerURLs") or ())
        if not one.get("name"):
            lines.append(f"{one['id']}[unstarted]: peerURLs={peers}\n")
            continue
        clients = ",".join(one.get("clientURLs") or ())
        is_leader = str(one["id"] == leader).lower()
        lines.append(
            f"{one['id']}: name={one['name']} peerURLs={peers} clientURLs={clients} "
            f"isLeader={is_leader}\n"
        )
    write("".join(lines))


def _send(call: Call, method: str, path: str, peer_urls: Sequence[str] | None = None) -> Any:
    body = b"" if peer_urls is None else json_bytes({"peerURLs": list(peer_urls)})
    reply = call.session.call(method, f"/v2/members{path}", body=body, content_type=JSON)
    return json_of(reply) if reply.body.strip() else {}


@_member_verb("add", "Add a member.", "NAME PEER-URL")
def member_add(call: Call, args: tuple[str, ...]) -> None:
    """Add a member."""
    if len(args) != 2:
        raise _wrong("Provide a name and a single member peerURL")
    name, url = args
    added = _send(call, "POST", "", [url])["id"]
    cluster = [
        f"{name if one['id'] == added else one.get('name', '')}={peer}"
        for one in _members(call)
        for peer in one.get("peerURLs") or ()
    ]
    write(
        f"Added member named {name} with ID {added} to cluster\n\n"
        f'ETCD_NAME="{name}"\nETCD_INITIAL_CLUSTER="{",".join(cluster)}"\n'
        'ETCD_INITIAL_CLUSTER_STATE="existing"\n'
    )


@_member_verb("remove", "Remove a member.", "ID")
def member_remove(call: Call, args: tuple[str, ...]) -> None:
    """Remove a member."""
    if len(args) != 1:
        raise _wrong("Provide a single member ID")
    (wanted,) = args
    members = _members(call)
    if wanted not in {one["id"] for one in members}:
        raise _wrong(f"Couldn't find a member in the cluster with an ID of {wanted}.")
    try:
        _send(call, "DELETE", f"/{quoted(wanted)}")
    except ApiError as error:
        text = f"Received an error trying to remove member {wanted}: {error.message}"
        raise _wrong(text) from error
    write(f"Removed member {wanted} from cluster\n")


@_member_verb("update", "Change the peer URLs of a member.", "ID PEER-URLS")
def member_update(call: Call, args: tuple[str, ...]) -> None:
    """Change the peer URLs of a member."""
    if len(args) != 2:
        raise _wrong(
            "Provide an ID and a list of comma separated peerURL "
            "(0xabcd http://example.com,http://example1.com)"
        )
    _send(call, "PUT", f"/{quoted(args[0])}", args[1].split(","))
    write(f"Updated member with ID {args[0]} in cluster\n")
