"""Exports: all of it at one index, whatever changes meanwhile and however large it is."""

import json
import re
from urllib.parse import quote

import pytest

from tests.support.server import PATIENCE_S

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=PATIENCE_S * 1000)

ui = pytest.mark.ui


def export(page):
    page.locator(".strip").get_by_role("button", name="Export").click()
    return page.get_by_role("dialog")


@ui
@pytest.mark.parametrize(
    ("label", "suffix"), [("JSON", "json"), ("YAML", "yaml"), ("etcd v2 JSON", "json")]
)
def test_what_is_exported_is_imported_again(visit, client, label, suffix):
    values = {
        "a b": "x\ny",
        "n": "1.0",
        "__proto__": "p",
        "s/__proto__/constructor": "c",
        "nl": "\n \n x\n\n",
        "nested/ключ": "",
        "_hidden": "h",
        "💡": "true",
    }
    for key, value in values.items():
        client.request("PUT", f"/v2/keys/out-{quote(label)}/{quote(key)}", {"value": value})
    client.request("PUT", f"/v2/raw/out-{quote(label)}/bytes", b"\xff\x00")
    client.request("PUT", f"/v2/raw/out-{quote(label)}/long", b"x" * 70_000)
    client.request("PUT", f"/v2/raw/out-{quote(label)}/long-bytes", b"\xff" * 70_000)
    page = visit().go(f"#k/out-{quote(label)}")
    dialog = export(page)
    dialog.get_by_label(label, exact=True).check()
    with page.expect_download() as download:
        dialog.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == f"out-{label}.{suffix}"
    page.locator(".strip").get_by_role("button", name="Import").click()
    page.get_by_label("A file").set_input_files(download.value.path())
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("11 the same")).to_be_visible()
    expect(page.get_by_role("button", name="Write 0 keys")).to_be_disabled()


@ui
def test_an_export_that_is_too_large_says_so_and_is_not_cut(visit, client):
    client.put("/huge/a", "1")

    def enlarge(route):
        answer = route.fetch()
        received = answer.json()
        received["node"]["nodes"][0]["size"] = 1 << 28
        route.fulfill(response=answer, body=json.dumps(received))

    page = visit().go("#k/huge")
    dialog = export(page)
    page.route(having("/v2/keys/huge/?limit=200"), enlarge)
    dialog.get_by_role("button", name="Download").click()
    expect(page.get_by_text("There are more than 128.0 MiB of values")).to_be_visible()


def having(part):
    """Addresses with a part in them."""
    return re.compile(re.escape(part))


class Held:
    """Requests of a page that wait, so that something can change before them."""

    def __init__(self, page, part):
        self.page, self.pattern = page, having(part)
        self.routes = []
        page.route(self.pattern, lambda route: self.routes.append(route))  # noqa: PLW0108

    def release(self):
        self.page.unroute(self.pattern)
        for route in self.routes:
            route.continue_()


@ui
def test_what_changes_during_an_export_is_in_it_as_it_became(visit, client):
    for number in range(230):
        client.put(f"/one/{number:03}", f"old {number}")
    client.put("/one/007", "leased", ttl=9000)
    client.put("/one/dir/x", "x")
    client.put("/one/file", "f")
    page = visit().go("#k/one")
    dialog = export(page)
    dialog.get_by_label("etcd v2 JSON").check()
    held = Held(page, "/v2/keys/one/?limit=200&after=")
    with page.expect_request(held.pattern):
        dialog.get_by_role("button", name="Download").click()
    # The first page has been read: what it holds changes behind it, and what is not read as well.
    client.put("/one/000", "new")
    client.delete("/one/001")
    client.put("/one/0005", "between")
    client.put("/one/first/deep/er", "e")
    client.put("/one/_hidden", "h")
    client.request("PUT", "/v2/keys/one/007", {"ttl": 500, "refresh": "true", "prevExist": "true"})
    client.request("DELETE", "/v2/keys/one/dir?recursive=true")
    client.put("/one/dir/y", "y")
    client.delete("/one/file")
    client.put("/one/file/now", "a directory")
    client.put("/two", "elsewhere")
    index = client.get("/one").headers["x-etcd-index"]
    with page.expect_download() as download:
        held.release()
    expect(page.get_by_text(f"exported, as they were at index {index}.")).to_be_visible()
    got = {}

    def flatten(nodes):
        for node in nodes:
            flatten(node["nodes"]) if node.get("dir") else got.update({node["key"]: node})

    flatten(json.loads(download.value.path().read_text())["node"]["nodes"])
    stored = {}

    def stored_below(node):
        for child in node.get("nodes", []):
            stored_below(child) if child.get("dir") else stored.update({child["key"]: child})

    stored_below(client.get("/one?recursive=true&hidden=true").json["node"])
    assert {key: node["value"] for key, node in got.items()} == {
        key: node["value"] for key, node in stored.items()
    }
    assert {key: node["modifiedIndex"] for key, node in got.items()} == {
        key: node["modifiedIndex"] for key, node in stored.items()
    }
    assert 400 < got["/one/007"]["ttl"] <= 500


LARGE = """
    window.showSaveFilePicker = async () =>
      (await navigator.storage.getDirectory()).getFileHandle("export", { create: true });
"""


def large(page):
    """Have the page take an export for large, and write it to a file of the browser's own."""

    def enlarge(route):
        answer = route.fetch()
        received = answer.json()
        received["bytes"] = 1 << 28
        route.fulfill(response=answer, body=json.dumps(received))

    page.add_init_script(LARGE)
    page.route(having("count=true"), enlarge)


def saved(page):
    return page.evaluate(
        "async () => (await (await (await navigator.storage.getDirectory())"
        '.getFileHandle("export")).getFile()).text()'
    )


@ui
@pytest.mark.parametrize("label", ["JSON", "YAML", "etcd v2 JSON"])
def test_a_large_export_is_written_while_it_is_read(visit, client, label):
    for number in range(230):
        client.put(f"/wide/{number:03}/{number}", f"value {number}\nof it\n")
    client.request("PUT", "/v2/keys/wide/empty", {"dir": "true"})
    visited = visit()
    large(visited.page)
    page = visited.go("#k/wide")
    dialog = export(page)
    expect(dialog.get_by_text("It is large")).to_be_visible()
    dialog.get_by_label(label, exact=True).check()
    dialog.get_by_role("button", name="Save to a file").click()
    expect(page.get_by_text("230 keys exported, as they were at index")).to_be_visible()
    text = saved(page)
    page.locator(".strip").get_by_role("button", name="Import").click()
    page.get_by_label("Or its text").fill(text)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("the same")).to_have_text("231 the same")


@ui
def test_a_large_export_that_meets_changes_is_written_again_and_then_says_so(visit, client):
    client.put("/moving/a", "0")
    visited = visit()
    large(visited.page)
    page = visited.go("#k/moving")
    dialog = export(page)
    expect(dialog.get_by_text("It is large")).to_be_visible()
    reads = []

    def change(route):
        reads.append(client.put("/moving/a", str(len(reads) + 1)).status)
        route.continue_()

    page.route(having("/v2/keys/moving/?limit=200"), change)
    dialog.get_by_role("button", name="Save to a file").click()
    expect(page.get_by_text("it changed 3 times")).to_be_visible()
    assert len(reads) == 3
    page.unroute_all()
    large(page)
    dialog = export(page)
    expect(dialog.get_by_text("It is large")).to_be_visible()
    dialog.get_by_role("button", name="Save to a file").click()
    expect(page.get_by_text("1 key exported, as they were at index")).to_be_visible()
    assert json.loads(saved(page)) == {"a": "3"}
