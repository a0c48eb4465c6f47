"""What is odd, huge, hostile, or changes while one looks: shown as it is, and never acted upon."""

import json
from urllib.parse import quote

import pytest

from tests.support.guarded import AL, ROOT, ask_for_users
from tests.support.server import PATIENCE_S

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=PATIENCE_S * 1000)

ui = pytest.mark.ui


@ui
def test_a_value_of_ten_mebibytes_is_shown_in_part_and_downloaded_whole(visit, client):
    value = b"0123456789abcde\n" * (10 << 16)
    value = value[:-1]
    assert client.request("PUT", "/v2/raw/huge-value", value).status == 201
    page = visit().go("#k/huge-value")
    expect(page.get_by_text("The first 1.0 MiB of 10.0 MiB are shown.")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all of it").click()
    assert download.value.path().read_bytes() == value
    expect(page.get_by_role("button", name="Edit")).to_be_disabled()
    # Deleted and put back: all of it, not what is shown.
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("huge-value is back.")).to_be_visible()
    assert client.request("GET", "/v2/raw/huge-value").body == value


@ui
@pytest.mark.parametrize("letter", ["n", "ж"])
def test_a_name_of_sixty_kilobytes_is_opened_edited_and_deleted(visit, client, letter):
    name = letter * (60_000 // len(letter.encode()) // len(quote(letter)) * len(letter.encode()))
    target = f"/v2/keys/long/{quote(name)}"
    assert client.request("PUT", target, {"value": "v"}).status == 201
    page = visit().go("#k/long")
    page.get_by_role("treeitem", name="long").locator(".chevron").click()
    page.get_by_role("treeitem", name=name[:100]).click()
    expect(page.locator(".code")).to_have_text("v")
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Value of").fill("w")
    page.keyboard.press("Control+s")
    expect(page.get_by_text("Saved at index")).to_be_visible()
    assert client.request("GET", target).json["node"]["value"] == "w"
    page.get_by_role("tab", name="History").click()
    expect(page.locator(".version-row")).to_have_count(2)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Undo")).to_be_visible()
    assert client.request("GET", target).status == 404
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


HOSTILE = {
    "__proto__": "polluted",
    "constructor": "polluted",
    "toString": "polluted",
    "hasOwnProperty/__proto__/x": "polluted",
    "evil\u202egpj.exe": "reversed\u202evalue",
    "zero\u200bwidth": "z",
    "nul\x00bell\x07": "n",
    "עברית": "right to left",
    "javascript:alert(1)": "j",
    "..;/x": "d",
}


@ui
def test_names_that_programs_trip_over_are_names_as_any_other(visit, client):
    for name, value in HOSTILE.items():
        answer = client.request("PUT", f"/v2/keys/odd/{quote(name)}", {"value": value})
        assert answer.status == 201, name
    page = visit().go("#k/odd")
    page.get_by_role("treeitem", name="odd").locator(".chevron").click()
    shown = page.get_by_role("tree")
    page.keyboard.press(".")
    for text in ("__proto__", "constructor", "evil⟨202e⟩gpj.exe", "zero⟨200b⟩width", "nul␀bell␇"):
        expect(shown.get_by_text(text, exact=True)).to_be_visible()
    for name, value in HOSTILE.items():
        page.evaluate("path => { location.hash = path }", f"#k/odd/{quote(name)}")
        expect(page.locator("#path-title")).to_have_attribute("aria-label", f"/odd/{name}")
        expect(page.locator(".code")).to_have_text(value)
        shown = page.get_by_text("has signs that cannot be seen")
        expect(shown).to_have_count(1 if "\u202e" in value else 0)
    assert page.evaluate("({}).polluted === undefined && Object.keys(Object.prototype).length") == 0


@ui
def test_a_very_deep_key_is_reached_and_its_row_is_seen(visit, client):
    path = "/".join(str(level) for level in range(60))
    client.put(f"/deep/{path}", "found")
    page = visit().go(f"#k/deep/{path}")
    expect(page.locator(".code")).to_have_text("found")
    selected = page.get_by_role("treeitem", selected=True)
    expect(selected).to_have_attribute("aria-level", "61")
    place = selected.locator(".name").bounding_box()
    assert place is not None
    assert place["x"] + place["width"] <= 380
    assert page.evaluate("document.querySelector('#tree').scrollWidth <= 380")


@ui
def test_an_error_of_a_megabyte_is_shown_in_a_line(visit, client):
    client.put("/told", "1")
    visited = visit()
    visited.expected = ["400"]
    page = visited.go("#k/told")
    cause = "<b>x</b>" * (1 << 17)
    body = json.dumps({"errorCode": 209, "message": "Invalid field", "cause": cause, "index": 0})
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Value of").fill("2")
    page.route("**/v2/keys/told", lambda route: route.fulfill(status=400, body=body))
    page.keyboard.press("Control+s")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Invalid field: <b>x</b><b>x</b>")
    assert len(alert.inner_text()) < 500


@ui
def test_a_page_that_became_read_only_saves_nothing_that_was_begun(visit, client):
    client.put("/begun", "1")
    page = visit().go("#k/begun")
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Value of").fill("2")
    page.get_by_role("button", name="User and settings").click()
    page.get_by_label("read-only, in this tab").check()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("textbox", name="Value of").press("Control+s")
    expect(page.get_by_text("this page changes nothing").last).to_be_visible()
    expect(page.get_by_role("textbox", name="Value of")).to_have_value("2")
    assert client.get("/begun").json["node"]["value"] == "1"


def test_users_that_are_switched_on_are_noticed_and_asked_for(visit, make_server):
    server = make_server().start()
    client = server.client()
    client.put("/al/text", "1")
    visited = visit(server.url)
    page = visited.go("#k/al/text")
    expect(page.locator(".code")).to_have_text("1")
    visited.expected = ["401"]
    ask_for_users(client)
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Value of").fill("2")
    page.keyboard.press("Control+s")
    expect(page.get_by_text("a guest may read nothing")).to_be_visible()
    page.get_by_role("button", name="Log in").first.click()
    page.get_by_label("User").fill("al")
    page.get_by_label("Password").fill("al-password")
    page.get_by_label("Password").press("Enter")
    # What was typed is there still, and is saved now.
    expect(page.get_by_role("textbox", name="Value of")).to_have_value("2")
    page.get_by_role("textbox", name="Value of").press("Control+s")
    expect(page.get_by_text("Saved at index")).to_be_visible()
    assert client.request("GET", "/v2/keys/al/text", headers=AL).json["node"]["value"] == "2"


@ui
def test_a_guest_with_rights_uses_what_is_his_and_no_more(visit, make_server):
    server = make_server().start()
    client = server.client()
    client.put("/public/text", "for all")
    client.put("/secret", "for root")
    ask_for_users(client)
    rights = '{"role":"guest","grant":{"kv":{"read":["/public/*"],"write":[]}}}'
    assert client.request("PUT", "/v2/auth/roles/guest", rights, ROOT).status == 200
    visited = visit(server.url)
    page = visited.go()
    expect(page.get_by_role("treeitem")).to_have_text(["public"])
    expect(page.get_by_text("a guest may read nothing")).to_have_count(0)
    page.get_by_role("treeitem", name="public").click()
    page.get_by_role("treeitem", name="text").click()
    expect(page.locator(".code")).to_have_text("for all")
    edit = page.get_by_role("button", name="Edit")
    expect(edit).to_be_disabled()
    expect(edit).to_have_attribute("title", "The role guest does not allow writing /public/text.")
    page.keyboard.press("2")
    expect(page.locator(".version-row")).to_have_count(1)
    expect(page.get_by_role("button", name="Restore this version")).to_have_count(0)
    client.request("PUT", "/v2/keys/public/text", {"value": "new"}, ROOT)
    page.keyboard.press("1")
    expect(page.locator(".code")).to_have_text("new")
    page.keyboard.press("/")
    page.get_by_role("combobox").fill("for root")
    expect(page.get_by_role("dialog").get_by_text("Nothing found.")).to_be_visible()


@ui
def test_a_hidden_page_gives_its_stream_up_and_misses_nothing(visit, client):
    client.put("/veiled", "0")
    visited = visit()
    page = visited.page
    page.clock.install()
    visited.go("#live/")
    expect(page.get_by_text("live · 0 events")).to_be_visible()
    hide = (
        "value => { Object.defineProperty(document, 'hidden', {get: () => value, "
        "configurable: true}); document.dispatchEvent(new Event('visibilitychange')) }"
    )
    page.evaluate(hide, arg=True)
    page.clock.run_for(29_000)
    expect(page.get_by_text("live · 0 events")).to_be_visible()
    page.clock.run_for(2_000)
    expect(page.locator(".live-state")).to_contain_text("not live")
    before = len(visited.requests)
    for number in (1, 2, 3):
        client.put("/veiled", str(number))
    page.clock.run_for(60_000)
    assert [url for url in visited.requests[before:] if "wait=true" in url] == []
    page.evaluate(hide, arg=False)
    expect(page.locator(".event .change")).to_have_text(["0 → 1", "1 → 2", "2 → 3"])
