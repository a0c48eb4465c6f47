"""Changes that meet other changes, slow answers, odd files: nothing is lost or lands elsewhere."""

import json

import pytest

from tests.support.guarded import AL, ROOT, ask_for_users
from tests.support.server import PATIENCE_S

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=PATIENCE_S * 1000)

ui = pytest.mark.ui


def editor(page):
    return page.get_by_role("textbox", name="Value of")


def node_of(client, key):
    return client.get(key).json["node"]


def compare(page, text):
    page.locator(".strip").get_by_role("button", name="Import").click()
    page.get_by_label("Or its text").fill(text)
    page.get_by_role("button", name="Compare").click()


def test_an_import_writes_what_was_shown_and_keeps_the_time_of_a_key(visit, client):
    client.put("/in/lease", "old", ttl=5000)
    client.put("/in/same", "s")
    client.put("/in/other", "o")
    page = visit().go("#k/in")
    sent = '{"lease": "new", "same": "s", "big": 12345678901234567890, "list": [1, 1.0], "a/b": ""}'
    compare(page, sent)
    expect(page.get_by_text("1 key below /in is not in the file, and stays.")).to_be_visible()
    assert node_of(client, "/in/lease")["value"] == "old"
    page.get_by_role("button", name="Write 4 keys").click()
    expect(page.get_by_text("4 keys written.").first).to_be_visible()
    lease = node_of(client, "/in/lease")
    assert (lease["value"], 4900 < lease["ttl"] <= 5000) == ("new", True)
    values = {name: node_of(client, f"/in/{name}")["value"] for name in ("big", "list", "a/b")}
    assert values == {"big": "12345678901234567890", "list": "[1,1.0]", "a/b": ""}


@ui
@pytest.mark.parametrize(
    "text",
    [
        '{"..": {"auth": {"enable": ""}}}',
        '{"../outside": "x"}',
        "./x: y\n",
        '{"action": "get", "node": {"key": "/in", "dir": true, "nodes": [{"key": "/in/../out"}]}}',
    ],
)
def test_an_import_writes_nothing_outside_of_its_directory(visit, client, text):
    client.put("/in2/x", "1")
    visited = visit()
    page = visited.go("#k/in2")
    compare(page, text)
    expect(page.get_by_text("is no path of a key: it has “.” or “..” in it.")).to_be_visible()
    assert not [url for url in visited.requests if "mget" in url or "/auth" in url]


@ui
def test_numbers_and_words_in_lists_of_yaml_stay_what_they_are(visit, client):
    page = visit().go("#k/")
    expect(page.get_by_role("treeitem").first).to_be_visible()
    lines = (
        "in4:",
        "  list: [1, 1.0, true, 'true', eu, 12345678901234567890]",
        "  8080: 0x1f",
        "  t: null",
    )
    compare(page, "\n".join(lines))
    page.get_by_role("button", name="Write 3 keys").click()
    expect(page.get_by_text("3 keys written.").first).to_be_visible()
    values = {name: node_of(client, f"/in4/{name}")["value"] for name in ("list", "8080", "t")}
    listed = '[1,1.0,true,"true","eu",12345678901234567890]'
    assert values == {"list": listed, "8080": "0x1f", "t": "null"}


@ui
def test_directories_without_keys_and_their_times_are_imported(visit, client):
    client.put("/in5/there/x", "1")
    page = visit().go("#k/in5")
    compare(page, '{"empty": {}, "there": {}, "there/x": {}}')
    expect(page.get_by_text("is a key here")).to_be_attached()
    page.get_by_role("button", name="Write 1 entry").click()
    expect(page.get_by_text("1 entry written.").first).to_be_visible()
    empty = node_of(client, "/in5/empty")
    assert (empty["dir"], "ttl" in empty) == (True, False)
    page.get_by_role("button", name="Close").click()
    nodes = [
        {
            "key": "/in5/ending",
            "dir": True,
            "ttl": 5000,
            "nodes": [{"key": "/in5/ending/a", "value": "1"}],
        }
    ]
    compare(
        page, json.dumps({"action": "get", "node": {"key": "/in5", "dir": True, "nodes": nodes}})
    )
    page.get_by_role("button", name="Write 2 entries").click()
    expect(page.get_by_text("2 entries written.").first).to_be_visible()
    assert 4900 < node_of(client, "/in5/ending")["ttl"] <= 5000
    assert node_of(client, "/in5/ending/a")["value"] == "1"


@ui
def test_an_import_leaves_what_has_changed_since_it_was_compared(visit, client):
    client.put("/in3/a", "1")
    visited = visit()
    visited.expected = ["412"]
    page = visited.go("#k/in3")
    compare(page, "a: mine\nb: new\n")
    expect(page.get_by_role("button", name="Write 2 keys")).to_be_visible()
    client.put("/in3/a", "theirs")
    page.get_by_role("button", name="Write 2 keys").click()
    expect(page.get_by_text("has changed meanwhile")).to_be_visible()
    assert node_of(client, "/in3/a")["value"] == "theirs"
    assert node_of(client, "/in3/b")["value"] == "new"


def test_of_several_places_the_one_that_is_looked_at_is_live(visit, make_server):
    server = make_server().start()
    client = server.client()
    client.put("/al/text", "mine")
    client.put("/zoo/text", "mine, too")
    ask_for_users(client)
    rights = '{"role":"al","grant":{"kv":{"read":["/zoo/*"],"write":[]}}}'
    assert client.request("PUT", "/v2/auth/roles/al", rights, ROOT).status == 200
    visited = visit(server.url)
    visited.page.add_init_script(
        f"sessionStorage.setItem('kvd.authorization', {AL['Authorization']!r})"
    )
    page = visited.go("#k/zoo/text")
    expect(page.locator(".code")).to_have_text("mine, too")
    expect(page.get_by_title("live below /zoo alone")).to_be_visible()
    client.request("PUT", "/v2/keys/zoo/text", {"value": "changed"}, ROOT)
    expect(page.locator(".code")).to_have_text("changed")
    page.evaluate("location.hash = '#live/al'")
    expect(page.get_by_title("live below /al alone")).to_be_visible()
    expect(page.locator(".live-state")).to_contain_text("live · 0 events")
    client.request("PUT", "/v2/keys/al/text", {"value": "now"}, ROOT)
    expect(page.locator(".event .change")).to_have_text(["mine → now"])
    page.evaluate("location.hash = '#live/zoo'")
    expect(page.get_by_title("live below /zoo alone")).to_be_visible()


@ui
def test_a_hidden_page_asks_for_no_status(visit):
    visited = visit()
    page = visited.page
    page.clock.install()
    visited.go("#status")
    expect(page.locator(".plot").first).to_be_visible()
    hide = "Object.defineProperty(document, 'hidden', {get: () => %s, configurable: true})"
    page.evaluate(hide % "true")
    page.clock.run_for(2100)
    before = [url for url in visited.requests if "status.json" in url]
    for _ in range(5):
        page.clock.run_for(7000)
    assert [url for url in visited.requests if "status.json" in url] == before
    with page.expect_request("**/ui/status.json*"):
        page.evaluate((hide % "false") + "; document.dispatchEvent(new Event('visibilitychange'))")


@ui
def test_a_text_that_is_cut_within_a_character_is_a_text(visit, client):
    value = ("x" + "ж" * 600_000).encode()
    assert client.request("PUT", "/v2/raw/cut-text", value).status == 201
    page = visit().go("#k/cut-text")
    expect(page.get_by_text("are shown.")).to_be_visible()
    expect(page.get_by_label("Bytes in hexadecimal")).to_have_count(0)
    expect(page.locator(".code")).to_contain_text("xжжж")


def test_what_is_typed_while_a_save_is_under_way_stays(visit, client):
    client.put("/slow", "a")
    page = visit().go("#k/slow")
    answers = []

    def hold(route):
        if route.request.method == "PUT" and not answers:
            answers.append(route)
        else:
            route.continue_()

    page.route("**/v2/keys/slow*", hold)
    page.get_by_role("button", name="Edit").click()
    editor(page).fill("b")
    with page.expect_request(lambda request: request.method == "PUT"):
        page.keyboard.press("Control+s")
    editor(page).fill("bc")
    answers[0].continue_()
    expect(page.get_by_text("Saved at index")).to_be_visible()
    assert node_of(client, "/slow")["value"] == "b"
    expect(editor(page)).to_have_value("bc")
    page.keyboard.press("Control+s")
    expect(page.get_by_role("tab", name="Value")).to_be_visible()
    assert node_of(client, "/slow")["value"] == "bc"


@ui
def test_a_time_that_another_client_gave_a_key_is_kept(visit, client):
    client.put("/given", "a\nb\nc")
    visited = visit()
    visited.expected = ["412"]
    page = visited.go("#k/given")
    page.get_by_role("button", name="Edit").click()
    editor(page).fill("a\nb\nmine")
    client.put("/given", "theirs\nb\nc", ttl=5000)
    page.keyboard.press("Control+s")
    page.get_by_role("button", name="Save the merge").click()
    expect(page.get_by_text("Saved at index")).to_be_visible()
    node = node_of(client, "/given")
    assert (node["value"], node.get("ttl", 0) > 4900) == ("theirs\nb\nmine", True)


@ui
def test_a_merge_that_cannot_be_read_says_so_and_is_made_later(visit, client):
    client.put("/cut", "a")
    visited = visit()
    visited.expected = ["412", "500"]
    page = visited.go("#k/cut")
    page.get_by_role("button", name="Edit").click()
    editor(page).fill("b")
    client.put("/cut", "c")
    failing = "**/v2/keys/cut?*base64*"
    page.route(failing, lambda route: route.fulfill(status=500, body="{}"))
    page.keyboard.press("Control+s")
    expect(page.get_by_text("what is stored could not be read")).to_be_visible()
    page.unroute(failing)
    page.keyboard.press("Control+s")
    expect(page.get_by_role("button", name="Save the merge")).to_be_visible()
    assert node_of(client, "/cut")["value"] == "c"


@ui
def test_the_time_of_a_key_is_changed_and_taken_away(visit, client):
    client.put("/timed", "x")
    page = visit().go("#k/timed")
    page.get_by_role("button", name="Let it expire").click()
    page.get_by_label("Seconds").fill("5000")
    page.get_by_role("button", name="Set", exact=True).click()
    page.get_by_role("button", name="expires in 83 min").click()
    assert 4900 < node_of(client, "/timed")["ttl"] <= 5000
    page.get_by_label("Expire no more").check()
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.get_by_role("button", name="Let it expire")).to_be_visible()
    assert "ttl" not in node_of(client, "/timed")


@ui
def test_a_path_that_is_entered_before_its_completion_came_is_opened(visit, client):
    client.put("/recent", "1")
    client.put("/wanted", "2")
    page = visit().go("#k/recent")
    expect(page.locator(".code")).to_have_text("1")
    page.keyboard.press("/")
    expect(page.get_by_role("option")).to_have_count(1)
    page.keyboard.insert_text("/wanted")
    page.keyboard.press("Enter")
    expect(page.locator(".code")).to_have_text("2")


@ui
def test_a_wrong_password_leaves_the_user_that_was_there(visit, make_server):
    server = make_server().start()
    client = server.client()
    client.put("/al/text", "mine")
    ask_for_users(client)
    visited = visit(server.url)
    visited.expected = ["401"]
    page = visited.go("#k/al/text")
    page.get_by_role("button", name="Log in").last.click()
    page.get_by_label("User").fill("al")
    page.get_by_label("Password").fill("al-password")
    page.get_by_label("Password").press("Enter")
    expect(page.locator(".code")).to_have_text("mine")
    page.evaluate("location.hash = '#k/other'")
    page.get_by_role("button", name="Log in as somebody else").click()
    page.get_by_label("User").fill("root")
    page.get_by_label("Password").fill("wrong")
    page.get_by_label("Password").press("Enter")
    expect(page.get_by_text("Wrong user or password.")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    page.evaluate("location.hash = '#k/al/text'")
    expect(page.locator(".code")).to_have_text("mine")


@ui
def test_a_full_disk_is_reported(visit, client):
    client.put("/full", "1")

    def fill(route):
        answer = route.fetch()
        received = answer.json()
        received["checks"]["space"] = "1 MiB left"
        route.fulfill(response=answer, body=json.dumps(received))

    visited = visit()
    visited.page.route("**/ui/status.json*", fill)
    page = visited.go("#status")
    expect(page.get_by_role("alert")).to_contain_text("No room for writes: 1 MiB left.")


@ui
def test_a_crowd_of_changes_is_shown_as_one_and_read_afterwards(visit, client):
    client.put("/crowd/0", "before")
    page = visit().go("#k/crowd/0")
    expect(page.locator(".code")).to_have_text("before")
    ops = [{"action": "set", "key": f"/crowd/{n % 100}", "value": "after"} for n in range(100)]
    sent = {"Content-Type": "application/json"}
    band = page.get_by_text("More changes come than can be shown")
    for _ in range(500):  # as many as it takes until they come faster than 500 a second
        client.request("POST", "/v2/txn", json.dumps({"ops": ops}), sent)
        if band.is_visible():
            break
    expect(band).to_be_visible()
    expect(page.locator(".code")).to_have_text("after")
    page.keyboard.press("g")
    page.keyboard.press("l")
    expect(page.get_by_text("More came than can be shown.")).to_be_visible()
    expect(page.get_by_text("More changes come than can be shown")).to_have_count(0)


@ui
def test_a_directory_that_was_deleted_is_restored_from_its_history(visit, client):
    client.put("/back/old", "gone before")
    client.delete("/back/old")
    client.put("/back/a", "1")
    client.put("/back/a", "2")
    client.put("/back/sub/dropped", "x")
    client.request("DELETE", "/v2/keys/back/sub?recursive=true")
    client.put("/back/sub/b", '{"x": 1}', ttl=5000)
    client.request("PUT", "/v2/raw/back/bytes", b"\xff\x00")
    client.request("PUT", "/v2/keys/back/empty", {"dir": "true"})
    client.request("DELETE", "/v2/keys/back?recursive=true")
    visited = visit()
    visited.expected = ["404"]
    page = visited.go("#k/back")
    page.get_by_role("button", name="See its history").click()
    page.get_by_role("button", name="Restore what was in it").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("All that was in it when it was removed")).to_be_visible()
    dialog.get_by_role("button", name="Write 4 entries").click()
    expect(dialog.get_by_text("4 entries written.")).to_be_visible()
    listed = client.get("/back?recursive=true&sorted=true&base64=true").json["node"]["nodes"]
    found = {node["key"]: node.get("value", node.get("nodes")) for node in listed}
    [inner] = found.pop("/back/sub")
    assert found == {"/back/a": "Mg==", "/back/bytes": "/wA=", "/back/empty": None}
    assert (inner["key"], 4000 < inner["ttl"] <= 5000) == ("/back/sub/b", True)


@ui
@pytest.mark.parametrize("keys", ["name", "/entered\n"])
def test_what_is_typed_while_the_finder_is_fetched_is_found(visit, client, keys):
    client.put("/entered", "found by its path")
    client.put("/typed/name", "1")
    visited = visit()
    page = visited.page
    held = []
    page.route("**/js/finder.js", lambda route: held.append(route))  # noqa: PLW0108
    with page.expect_request("**/js/finder.js"):
        visited.go()
        expect(page.get_by_role("treeitem", name="typed")).to_be_visible()
        page.keyboard.press("/")
        page.keyboard.type(keys)
    expect(page.get_by_role("dialog").get_by_text("Loading")).to_be_visible()
    for route in held:
        route.continue_()
    if keys == "name":
        expect(page.get_by_role("combobox")).to_have_value("name")
        page.keyboard.type("x")
        expect(page.get_by_role("combobox")).to_have_value("namex")
    else:
        expect(page.locator(".code")).to_have_text("found by its path")
