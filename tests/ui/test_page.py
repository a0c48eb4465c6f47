"""The page in Chromium: what people do with it, from end to end. Names of keys keep tests apart."""

import json
from urllib.parse import quote

import pytest

from tests.support.guarded import ask_for_users
from tests.support.server import PATIENCE_S, Server, free_port

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=PATIENCE_S * 1000)

JSON = """{
  "host": "db.local",
  "port": 5432,
  "pool": {
    "min": 4,
    "max": 24
  },
  "tls": true
}"""


def value_of(client, key):
    return client.get(key).json["node"]["value"]


def editor(page):
    return page.get_by_role("textbox", name="Value of")


def text_of_value(page):
    return "\n".join(page.locator(".code .line").all_inner_texts())


def test_the_keyboard_alone_finds_edits_restores_creates_and_deletes(visit, client):
    client.put("/one/database", JSON)
    page = visit().go()
    expect(page.get_by_role("treeitem", name="one")).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_role("combobox")).to_be_focused()
    page.keyboard.type("db.local")
    expect(page.get_by_role("option").first).to_contain_text("/one/database")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="/one/database")).to_be_visible()
    expect(page.get_by_role("treeitem", name="database")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".code")).to_contain_text("db.local")
    # Edit: wrong JSON is said to be wrong, with its line, and may be saved all the same.
    page.keyboard.press("e")
    expect(editor(page)).to_be_focused()
    editor(page).fill(JSON.replace("true", "tru"))
    expect(page.get_by_text("line 8: “tru” where a value should be")).to_be_visible()
    page.keyboard.press("Control+s")
    expect(page.get_by_text("JSON, not valid: line 8")).to_be_visible()
    assert value_of(client, "/one/database") == JSON.replace("true", "tru")
    # History: what it changed, and the version before it again.
    page.keyboard.press("2")
    expect(page.get_by_text("stored now")).to_be_visible()
    row = page.locator(".version-row")
    expect(row).to_have_count(2)
    row.nth(1).focus()
    page.keyboard.press("Enter")
    restore = page.get_by_role("button", name="Restore this version")
    restore.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Restore this version?")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Restored; it is index")).to_be_visible()
    assert value_of(client, "/one/database") == JSON
    # A new key beside it.
    page.keyboard.press("1")
    page.keyboard.press("n")
    expect(page.get_by_role("textbox", name="Path")).to_be_focused()
    page.keyboard.type("motd")
    page.get_by_role("textbox", name="Value", exact=True).focus()
    page.keyboard.type("hello")
    page.get_by_role("textbox", name="Path").press("Enter")
    expect(page.get_by_role("heading", name="/one/motd")).to_be_visible()
    assert value_of(client, "/one/motd") == "hello"
    # Deleted, and put back.
    expect(page.locator(".code")).to_have_text("hello")
    page.keyboard.press("Delete")
    expect(page.get_by_role("dialog", name="Delete this key?")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Deleted motd.")).to_be_visible()
    assert client.get("/one/motd").status == 404
    undo = page.get_by_role("button", name="Undo")
    undo.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("motd is back.")).to_be_visible()
    assert value_of(client, "/one/motd") == "hello"


def test_two_people_overwrite_nothing(visit, client):
    client.put("/two/database", JSON)
    visited = visit()
    visited.expected = ["412"]
    page = visited.go("#k/two/database")
    page.get_by_role("button", name="Edit").click()
    mine = JSON.replace("24", "48")
    editor(page).fill(mine)
    client.put("/two/database", JSON.replace("5432", "5433"))
    expect(page.get_by_text("Somebody saved this key while you were")).to_be_visible()
    page.keyboard.press("Control+s")
    # In different places: both are kept, and nothing is stored before that has been seen.
    expect(page.get_by_text("both are kept")).to_be_visible()
    assert value_of(client, "/two/database") == JSON.replace("5432", "5433")
    page.get_by_role("button", name="Save the merge").click()
    expect(page.get_by_text("Saved at index")).to_be_visible()
    both = mine.replace("5432", "5433")
    assert value_of(client, "/two/database") == both
    # The same line: the choice is asked for.
    page.get_by_role("button", name="Edit").click()
    editor(page).fill(both.replace("db.local", "mine.local"))
    client.put("/two/database", both.replace("db.local", "theirs.local"))
    page.keyboard.press("Control+s")
    expect(page.get_by_text("where both changed the same lines")).to_be_visible()
    save = page.get_by_role("button", name="Save the merge")
    expect(save).to_be_disabled()
    page.get_by_label("Yours").check()
    save.click()
    expect(page.get_by_role("tab", name="Value")).to_be_visible()
    assert value_of(client, "/two/database") == both.replace("db.local", "mine.local")


@pytest.mark.ui
def test_a_key_that_is_deleted_meanwhile_is_created_only_if_that_is_meant(visit, client):
    client.put("/three/note", "a")
    visited = visit()
    visited.expected = ["404"]
    page = visited.go("#k/three/note")
    page.get_by_role("button", name="Edit").click()
    editor(page).fill("b")
    client.delete("/three/note")
    expect(page.get_by_text("This key was deleted meanwhile.")).to_be_visible()
    assert client.get("/three/note").status == 404
    page.get_by_role("button", name="Create it again").click()
    expect(page.get_by_text("Saved at index")).to_be_visible()
    assert value_of(client, "/three/note") == "b"


NAMES = [
    "<img src=x onerror=alert(1)>",
    "<b>k",
    "a&b%c?d#e;f+g@h",
    "ключ",
    "new\nline",
    "%2F",
    "\"q'",
]


def test_names_and_values_are_text_and_never_markup(visit, client):
    script = "<script>document.title='x'</script><img src=x onerror=alert(1)>"
    for name in NAMES:
        assert (
            client.request("PUT", f"/v2/keys/four/{quote(name, safe='')}", {"value": script}).status
            == 201
        )
    page = visit().go("#k/four")
    expect(page.get_by_role("heading", name="/four")).to_be_visible()
    page.get_by_role("treeitem", name="four").locator(".chevron").click()
    for name in NAMES:
        page.evaluate("path => { location.hash = path }", f"#k/four/{quote(name, safe='')}")
        expect(page.locator("#path-title b")).to_have_text(name, use_inner_text=False)
        expect(page.locator(".code")).to_have_text(script)
    expect(
        page.locator(".row .name").filter(has_text="<img src=x onerror=alert(1)>")
    ).to_be_visible()
    page.keyboard.press("2")
    expect(page.locator(".diff")).to_contain_text(script)
    page.keyboard.press("g")
    page.keyboard.press("l")
    expect(page.get_by_text("live · 0 events")).to_be_visible()
    client.request("PUT", "/v2/keys/four/%3Cb%3Ek", {"value": script})
    expect(page.locator(".event .change")).to_contain_text("<script>")
    assert page.locator("main img, main b b").count() == 0


VALUES = {
    "empty": b"",
    "lines": b"a\r\nb\r\n",
    "mixed": b"a\r\nb\nc\r",
    "newline": b"x\n\n",
    "mark": b"\xef\xbb\xbfx",
    "numbers": b'{"a":12345678901234567890,"b":1.0}',
    "zero": b"a\x00b\tc",
}


@pytest.mark.parametrize(
    "name",
    [name if name == "lines" else pytest.param(name, marks=pytest.mark.ui) for name in VALUES],
)
def test_a_save_without_a_change_is_byte_for_byte_the_same(visit, client, name):
    value = VALUES[name]
    assert client.request("PUT", f"/v2/raw/five/{name}", value).status in (200, 201)
    page = visit().go(f"#k/five/{name}")
    page.get_by_role("button", name="Edit").click()
    area = editor(page)
    before = area.input_value()
    area.fill(before + "!")
    area.fill(before)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("tab", name="Value")).to_be_visible()
    assert client.request("GET", f"/v2/raw/five/{name}").body == value
    # And a change changes nothing else.
    page.get_by_role("button", name="Edit").click()
    area.fill(before + "!")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved at index")).to_be_visible()
    if name != "mixed":
        assert client.request("GET", f"/v2/raw/five/{name}").body == value + b"!"


@pytest.mark.ui
def test_bytes_are_shown_and_cannot_be_edited(visit, client):
    client.request("PUT", "/v2/raw/six/bytes", b"\x00\x01\xff\xfe")
    client.request("PUT", "/v2/raw/six/long", b"x" * 1_200_000)
    page = visit().go("#k/six/bytes")
    expect(page.get_by_label("Bytes in hexadecimal")).to_contain_text("00 01 ff fe")
    expect(page.get_by_role("button", name="Edit")).to_be_disabled()
    page.goto(page.url.replace("bytes", "long"))
    expect(page.get_by_text("The first 1.0 MiB of 1.1 MiB are shown.")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all of it").click()
    assert len(download.value.path().read_bytes()) == 1_200_000
    expect(page.get_by_role("button", name="Edit")).to_be_disabled()


def test_a_save_keeps_the_time_that_is_left(visit, client):
    client.put("/seven/lease", "a", ttl=5000)
    page = visit().go("#k/seven/lease")
    expect(page.get_by_role("button", name="expires in 83 min")).to_be_visible()
    page.get_by_role("button", name="Edit").click()
    editor(page).fill("b")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved at index")).to_be_visible()
    node = client.get("/seven/lease").json["node"]
    assert node["value"] == "b"
    assert 4900 < node["ttl"] <= 5000
    page.get_by_role("button", name="Edit").click()
    editor(page).fill("c")
    page.get_by_label("keep expiring").uncheck()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("button", name="Let it expire")).to_be_visible()
    assert "ttl" not in client.get("/seven/lease").json["node"]


def test_what_changes_appears(visit, client):
    client.put("/eight/a", "1")
    page = visit().go("#k/eight/a")
    expect(page.locator(".code")).to_have_text("1")
    client.put("/eight/a", "2")
    expect(page.locator(".code")).to_have_text("2")
    client.put("/eight/new", "3")
    expect(page.get_by_role("treeitem", name="new 3")).to_be_visible()
    client.delete("/eight/new")
    expect(page.get_by_role("treeitem", name="new 3")).to_have_count(0)
    client.delete("/eight/a")
    expect(page.get_by_role("treeitem", name="a 2")).to_have_count(0)


def test_the_feed_misses_nothing_over_a_restart_and_shows_a_gap(visit, make_server):
    listen = f"http://127.0.0.1:{free_port()}"
    server: Server = make_server("--event-history-limit", "20", listen=listen).start()
    client = server.client()
    client.put("/x", "0")
    visited = visit(server.url)
    visited.expected = ["net::ERR_", "400"]
    page = visited.go("#live/")
    expect(page.get_by_text("live · 0 events")).to_be_visible()
    client.put("/x", "1")
    expect(page.locator(".event .change")).to_have_text(["0 → 1"])
    server.terminate()
    expect(page.get_by_role("alert").get_by_text("kvd does not answer")).to_be_visible()
    server.start()
    client = server.client()
    for number in range(2, 7):
        client.put("/x", str(number))
    expect(page.get_by_role("alert").get_by_text("kvd does not answer")).to_have_count(0)
    expect(page.locator(".event .change")).to_have_text([f"{n} → {n + 1}" for n in range(6)])
    server.terminate()
    expect(page.get_by_role("alert").get_by_text("kvd does not answer")).to_be_visible()
    # Where the page does not look, so that it comes back after all of them.
    place, server.listen = server.listen, "http://127.0.0.1:0"
    server.start()
    client = server.client()
    for number in range(7, 40):
        client.put("/x", str(number))
    server.terminate()
    server.listen = place
    server.start()
    expect(page.locator(".event.gap")).to_contain_text("Not shown: events 9 to")


def test_users_see_and_are_offered_what_is_theirs(visit, make_server):
    server = make_server().start()
    client = server.client()
    client.put("/al/text", "mine")
    client.put("/other/text", "not yours")
    ask_for_users(client)
    visited = visit(server.url)
    visited.expected = ["401"]
    page = visited.go()
    page.get_by_role("button", name="Log in").click()
    page.get_by_label("User").fill("al")
    page.get_by_label("Password").fill("wrong")
    page.get_by_label("Password").press("Enter")
    expect(page.get_by_text("Wrong user or password.")).to_be_visible()
    page.get_by_label("Password").fill("al-password")
    page.get_by_label("Password").press("Enter")
    expect(page.get_by_role("treeitem")).to_have_text(["al"])
    visited.expected = []
    page.get_by_role("treeitem", name="al").click()
    page.get_by_role("treeitem", name="text").click()
    expect(page.locator(".code")).to_have_text("mine")
    expect(page.get_by_role("button", name="Edit")).to_be_enabled()
    client.request(
        "PUT",
        "/v2/keys/al/text",
        {"value": "changed"},
        {"Authorization": "Basic YWw6YWwtcGFzc3dvcmQ="},
    )
    expect(page.locator(".code")).to_have_text("changed")
    visited.expected = ["401"]
    page.goto(f"{server.url}/ui/#k/other/text")
    expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()
    expect(page.get_by_text("You may read /al/*.")).to_be_visible()


@pytest.mark.ui
def test_a_read_only_page_offers_no_change(visit, make_server):
    server = make_server("--ui=read-only").start()
    server.client().put("/a", "1")
    page = visit(server.url).go("#k/a")
    for name in ("Edit", "Delete"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    expect(page.get_by_role("button", name="Edit")).to_have_attribute(
        "title", "This server shows the page read-only (--ui read-only)."
    )


def test_an_empty_store_says_how_to_begin(visit, make_server):
    server = make_server().start()
    page = visit(server.url).go()
    expect(page.get_by_role("heading", name="The store is empty")).to_be_visible()
    expect(
        page.get_by_text(f"curl {server.url}/v2/keys/greeting -X PUT -d value=hello")
    ).to_be_visible()
    page.get_by_role("button", name="New key").last.click()
    page.get_by_role("textbox", name="Path").fill("/app/config")
    page.get_by_role("textbox", name="Value", exact=True).fill("a: 1\nb: 2\n")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_text("YAML")).to_be_visible()
    expect(page.get_by_role("treeitem", name="app")).to_be_visible()


def test_a_large_directory_is_read_in_pieces(visit, client):
    for first in range(0, 1200, 100):
        ops = [
            {"action": "set", "key": f"/many/dev-{number:06}", "value": f"value {number}"}
            for number in range(first, first + 100)
        ]
        sent = {"Content-Type": "application/json"}
        assert client.request("POST", "/v2/txn", json.dumps({"ops": ops}), sent).status == 200
    visited = visit()
    page = visited.go("#k/many/dev-000700")
    selected = page.get_by_role("treeitem", selected=True)
    expect(selected).to_contain_text("dev-000700")
    expect(selected).to_have_attribute("aria-posinset", "701")
    expect(selected).to_have_attribute("aria-setsize", "1200")
    assert page.get_by_role("treeitem").count() < 80
    page.get_by_role("tree").press("End")
    expect(page.get_by_role("treeitem", name="dev-001199")).to_be_visible()
    shown = page.get_by_role("treeitem").count()
    assert shown < 80
    reads = [request for request in visited.requests if "/v2/keys/" in request]
    assert all(
        "limit=" in read or "marks=" in read or "wait=" in read or "count=" in read
        for read in reads
    ), reads


# Modules that are fetched when they are asked for, or after the first second.
LATER = tuple(
    f"/js/{name}.js"
    for name in (
        *("dialogs", "diff", "difference", "editor", "exporting", "formats", "history"),
        *("live", "merge", "plot", "status", "transfer"),
    )
)


def test_the_first_look_is_light(visit, client):
    client.put("/nine/a", "1")
    visited = visit()
    sizes: list[int] = []

    def note(answer):
        if not answer.url.endswith(LATER):
            sizes.append(int(answer.headers.get("content-length", 0)))

    visited.page.on("response", note)
    page = visited.go()
    expect(page.get_by_role("treeitem", name="nine")).to_be_visible()
    # The value is not waited for, and what is below it is counted meanwhile.
    others = ("count=", "wait=", "limit=1&")
    before_the_tree = [
        request
        for request in visited.requests
        if not request.endswith(LATER) and not any(part in request for part in others)
    ]
    assert len(before_the_tree) <= 18, [url.partition("/ui/")[2] or url for url in before_the_tree]
    assert sum(sizes) <= 180_000


SCREENS = {
    "root": "#k/",
    "key": "#k/ten/database",
    "history": "#k/ten/database",
    "edit": "#k/ten/database",
    "live": "#live/",
    "status": "#status",
    "find": "#k/ten",
    "delete": "#k/ten",
    "create": "#k/ten",
    "menu": "#k/ten",
    "help": "#k/ten",
    "export": "#k/ten",
    "import": "#k/ten",
    "missing": "#k/ten/none",
}
IN_EACH_RUN = (("key", True, False), ("status", False, True))


def combinations():
    for name in SCREENS:
        for dark in (False, True):
            for phone in (False, True):
                usual = (name, dark, phone) in IN_EACH_RUN
                marks = [] if usual else [pytest.mark.ui]
                label = f"{name}-{'dark' if dark else 'light'}{'-phone' if phone else ''}"
                yield pytest.param((name, dark, phone), id=label, marks=marks)


def open_screen(page, name):
    # A narrow screen shows the tree first.
    shown = page.locator("main .path, main .status, main .live, [role=treeitem]")
    expect(shown.filter(visible=True).first).to_be_visible()
    buttons = {
        "edit": "Edit",
        "delete": "Delete",
        "create": "New key",
        "export": "Export",
        "import": "Import",
    }
    if name in buttons:
        page.locator(".strip").get_by_role("button", name=buttons[name]).click()
    elif name == "history":
        page.get_by_role("tab", name="History").click()
        expect(page.locator(".version-row").first).to_be_visible()
    elif name == "find":
        page.keyboard.press("/")
        page.get_by_role("combobox").fill("db.local")
        expect(page.get_by_role("option").first).to_be_visible()
    elif name == "menu":
        page.get_by_role("button", name="User and settings").click()
    elif name == "help":
        page.keyboard.press("?")
    if name in ("delete", "create", "export", "import", "menu", "help"):
        expect(page.get_by_role("dialog")).to_be_visible()
    if name == "status":
        expect(page.locator(".plot").first).to_be_visible()


@pytest.mark.parametrize("screen", [*combinations()])
def test_each_screen_can_be_used_by_all(visit, client, axe, screen):
    name, dark, phone = screen
    client.put("/ten/database", JSON)
    client.put("/ten/lease", "x", ttl=3000)
    visited = visit(dark=dark, phone=phone)
    visited.expected = ["404"] if name == "missing" else []
    page = visited.go(SCREENS[name])
    open_screen(page, name)
    assert axe(page) == []
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= (390 if phone else 1280)
