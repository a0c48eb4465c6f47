"""The page with many children in a directory: `scripts/measure-ui [CHILDREN]` prints a table.

Each row has its budget. Times are those of this machine at this moment; what a page asks for, how
many rows it has and how much comes before the tree do not depend on it.
"""

import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.server import Client, Server

DIRECTORY = "/fleet/devices"
ROWS_A_FRAME = 12

SCROLL = """async ([frames, step]) => {
  const tree = document.getElementById("tree");
  const draws = [], gaps = [];
  let last = performance.now();
  for (let n = 0; n < frames; n += 1) {
    await new Promise(requestAnimationFrame);
    gaps.push(performance.now() - last);
    last = performance.now();
    tree.scrollTop += step;
    const began = performance.now();
    tree.dispatchEvent(new Event("scroll"));
    draws.push(performance.now() - began);
  }
  return [draws, gaps];
}"""
JUMP = """async share => {
  const tree = document.getElementById("tree");
  const began = performance.now();
  tree.scrollTop = share * tree.scrollHeight;
  for (;;) {
    await new Promise(requestAnimationFrame);
    const rows = document.querySelectorAll(".row").length;
    if (rows && !document.querySelector(".row.waits")) return performance.now() - began;
  }
}"""


def fill(client: Client, children: int) -> None:
    width = len(str(children - 1))
    for first in range(0, children, 128):
        ops = [
            {
                "action": "set",
                "key": f"{DIRECTORY}/dev-{number:0{width}}",
                "value": f'{{"model":"A1","fw":"2.4.{number % 30}"}}',
            }
            for number in range(first, min(children, first + 128))
        ]
        sent = {"Content-Type": "application/json"}
        answer = client.request("POST", "/v2/txn", json.dumps({"ops": ops}), sent)
        assert answer.status == 200, answer.body[:300]


def milliseconds(client: Client, target: str) -> tuple[float, int]:
    began = time.perf_counter()
    size = len(client.request("GET", target).body)
    return (time.perf_counter() - began) * 1000, size


def beside(server: Server, target: str) -> tuple[float, list[float]]:
    """Time of a long read, and of the reads of one key beside it."""
    took: list[float] = []
    reading = threading.Thread(target=lambda: took.append(milliseconds(server.client(), target)[0]))
    client = server.client()
    client.get("/small")
    others: list[float] = []
    reading.start()
    while reading.is_alive():
        others.append(milliseconds(client, "/v2/keys/small")[0])
        time.sleep(0.001)
    reading.join()
    return took[0], sorted(others)


Row = tuple[str, str, str]


def of_server(server: Server) -> Iterator[Row]:
    client = server.client()
    listing = f"/v2/keys{DIRECTORY}/?"
    for name, query in (("marks", "marks=500"), ("page of 500", "limit=500&maxValue=120")):
        milliseconds(client, listing + query)
        took, size = milliseconds(client, listing + query)
        yield f"server: {name}", f"{took:.0f} ms, {size / 1000:.1f} KB", ""
    for name, target in (
        ("marks", f"{listing}marks=500"),
        ("count", f"/v2/keys{DIRECTORY}/?count=true&recursive=true&hidden=true"),
        ("find", "/v2/keys/?find=nowhere&in=keys,values&recursive=true"),
    ):
        took, others = beside(server, target)
        middle = statistics.median(others)
        shown = f"{took:.0f} ms; others' GET p50 {middle:.1f}, p99 {percentile(others, 99):.1f}"
        yield f"server: {name}, others", f"{shown}, max {others[-1]:.1f} ms", "others <= 20 ms"


def percentile(values: list[float], share: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * share // 100)]


def of_page(browser: Browser, server: Server, children: int) -> Iterator[Row]:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    sizes: list[int] = []
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("response", lambda got: sizes.append(int(got.headers.get("content-length", 0))))
    page.goto(f"{server.url}/ui/")
    page.wait_for_selector(".row .name")
    asked, received = len(requests), sum(sizes)
    yield "requests before the tree", str(asked), "<= 18 and what is beside it"
    yield "bytes before the tree", f"{received / 1000:.0f} KB", "<= 180 KB"
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    yield "first contentful paint", f"{page.evaluate(paint):.0f} ms", "< 200 ms quiet"
    width = len(str(children - 1))
    far = f"dev-{children // 2:0{width}}"
    yield from of_tree(page, server, far)
    plain = [url for url in requests if f"{DIRECTORY}/" in url and "=" not in url]
    yield "plain listings asked for", str(len(plain)), "0"


def of_tree(page: Page, server: Server, far: str) -> Iterator[Row]:
    page.goto("about:blank")
    began = time.perf_counter()
    page.goto(f"{server.url}/ui/#k{DIRECTORY}/{far}")
    page.wait_for_selector(f".row.selected:has-text('{far}')")
    took = time.perf_counter() - began
    yield "link to the middle child", f"{took:.2f} s", "< 3 s"
    draws, gaps = page.evaluate(SCROLL, [240, ROWS_A_FRAME * 28])
    shown = f"p50 {percentile(draws, 50):.1f}, p95 {percentile(draws, 95):.1f} ms"
    yield f"drawing, {ROWS_A_FRAME} rows a frame", shown, "p95 < 8 ms"
    shown = (
        f"p50 {percentile(gaps, 50):.1f}, p95 {percentile(gaps, 95):.1f}, max {max(gaps):.1f} ms"
    )
    yield "frames while scrolling", shown, ""
    jumps = [page.evaluate(JUMP, share) for share in (0.9, 0.1, 0.77, 0.33, 0.99)]
    yield "jump until the rows are there", f"{min(jumps):.0f} to {max(jumps):.0f} ms", "< 500 ms"
    rows = page.locator(".row").count()
    elements = page.evaluate("document.querySelectorAll('*').length")
    heap = page.evaluate("performance.memory.usedJSHeapSize / 1e6")
    yield "rows, elements, JS heap", f"{rows}, {elements}, {heap:.1f} MB", "rows < 80"


def main(children: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="kvd-ui-"))
    out = sys.stdout.write
    server = Server(folder).start()
    try:
        with sync_playwright() as playwright:
            server.client().put("/small", "1")
            fill(server.client(), children)
            browser: Any = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            out(f"{children:,} children in one directory\n")
            for name, figure, budget in (
                *of_page(browser, server, children),
                *of_server(server),
            ):
                out(f"{name:32} {figure:70} {budget}\n")
            browser.close()
    finally:
        server.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
