"""Users and roles of an etcd as kvd's documents: password hashes as they are.

/2/users/NAME    {"user", "password": its hash, "roles"}    /2/roles/NAME    {"role", ...}
/2/enabled       true or false
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from kvd.migrate.errors import Damaged
from kvd.migrate.etcd.store import Store
from kvd.storage.format.records import Document, Kind
from kvd.v2 import go_json
from kvd.v2.documents import auth
from kvd.v2.documents.auth_json import role_fields, stored_role, stored_user, user_fields


def documents(store: Store) -> list[Document]:
    """Return users, roles, and whether they are asked for.

    Raises:
        Damaged: one is in no form that etcd writes.
    """
    try:
        return _documents(store)
    except (AttributeError, KeyError, TypeError, ValueError, go_json.Malformed) as error:
        raise Damaged(f"the users of the etcd are in no known form: {error!r}") from None


def _documents(store: Store) -> list[Document]:
    found = []
    for name, text in _files(store, b"/2/users"):
        secret = json.loads(text)["password"].encode()
        user = stored_user(name, text, secret)
        document = go_json.encode(user_fields(user))
        found.append(Document(Kind.AUTH, auth.USER, name, document, secret))
    for name, text in _files(store, b"/2/roles"):
        document = go_json.encode(role_fields(stored_role(text)))
        found.append(Document(Kind.AUTH, auth.ROLE, name, document))
    enabled = store.find(b"/2/enabled")
    if enabled is not None and enabled.value in (b"true", b"false"):
        found.append(Document(Kind.AUTH, auth.SETTING, auth.ENABLED, enabled.value))
    return found


def _files(store: Store, path: bytes) -> list[tuple[str, bytes]]:
    top = store.find(path)
    children = (top.children or {}) if top is not None else {}
    return [
        (name.decode(), node.value) for name, node in children.items() if node.value is not None
    ]


def doubts(documents: Sequence[Document]) -> list[str]:
    """Return what users and roles mean otherwise in kvd."""
    found = []
    roles = {
        document.name: stored_role(document.content or b"{}")
        for document in documents
        if document.what == auth.ROLE
    }
    for document in documents:
        if document.what == auth.USER:
            names = stored_user(document.name, document.content or b"{}", None).roles or ()
            missing = [name for name in names if name not in roles and name != auth.ROOT]
            found += [
                f"user {document.name} has the role {name}, which is missing" for name in missing
            ]
    for name, role in roles.items():
        permissions = role.permissions
        if "" in (*(permissions.read or ()), *(permissions.write or ())):
            found.append(f"role {name} has an empty pattern, which allows nothing in kvd")
    return found
