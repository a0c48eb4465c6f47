"""Transactions for tests: requests and operations."""

import json

from tests.support.server import Answer, Client


def txn(client: Client, body: object, **headers: str) -> Answer:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.request("POST", "/v2/txn", text, {"Content-Type": "application/json"} | headers)


def op(action: str, key: str, **fields: object) -> dict[str, object]:
    return {"action": action, "key": key, **fields}
