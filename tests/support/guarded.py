"""A server with users, and requests in their names."""

import base64

from tests.support.server import Client

DENIED = {
    "errorCode": 110,
    "message": "The request requires user authentication",
    "cause": "Insufficient credentials",
    "index": 0,
}


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


ROOT = basic("root", "root-password")
AL = basic("al", "al-password")


def ask_for_users(client: Client) -> None:
    """Make a root, a user al with all rights below /al, and no guest."""
    documents = {
        "users/root": '{"user":"root","password":"root-password"}',
        "users/al": '{"user":"al","password":"al-password","roles":["al"]}',
        "roles/al": '{"role":"al","permissions":{"kv":{"read":["/al/*"],"write":["/al/*"]}}}',
        "roles/guest": '{"role":"guest"}',
        "enable": "",
    }
    for path, document in documents.items():
        assert client.request("PUT", f"/v2/auth/{path}", document).status in (200, 201)
