"""The report's page in a real headless Chromium: at three widths, light and dark. Without one these tests skip."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import made_run
import pytest

from edgedistill.report import report

SPEC = importlib.util.spec_from_file_location("report_look", Path(__file__).parent.parent / "benchmarks" / "report_look.py")
look = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(look)

pytestmark = pytest.mark.skipif(look.chromium() is None, reason="no Chromium on PATH or in $EDGEDISTILL_CHROMIUM")

# What is wrong with how a page looks, as a list of sentences.
FAULTS = """(() => {
  const faults = [], root = document.documentElement, name = (node) => JSON.stringify(node.textContent.trim().slice(0, 30));
  if (root.scrollWidth > root.clientWidth) faults.push(`the page is ${root.scrollWidth} px wide`);
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (node) => { for (; node; node = node.parentElement) {
    const c = parse(getComputedStyle(node).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const own = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  for (const node of document.body.querySelectorAll('*')) {
    const style = getComputedStyle(node), box = node.getBoundingClientRect();
    if (!own(node) || !box.width || ['STYLE', 'TITLE'].includes(node.tagName)) continue;
    const [a, b] = [light(parse(node.closest('svg') ? style.fill : style.color)), light(behind(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faults.push(`${name(node)} has a contrast of ${contrast.toFixed(1)}`);
    if (parseFloat(style.fontSize) < 12) faults.push(`${name(node)} is ${style.fontSize} small`);
    if (!node.closest('.scroll') && (box.left < 0 || box.right > root.clientWidth + 0.5))
      faults.push(`${name(node)} leaves the page`);
  }
  for (const svg of document.querySelectorAll('svg')) {
    const texts = [...svg.querySelectorAll('text')].map((node) => [node, node.getBoundingClientRect()]);
    texts.forEach(([n, a], i) => texts.slice(i + 1).forEach(([m, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      if (wide > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
        faults.push(`${name(n)} and ${name(m)} overlap`); }));
  }
  for (const row of document.querySelectorAll('.row, .scale, .key')) {
    const boxes = [...row.children].map((node) => node.getBoundingClientRect());
    boxes.slice(1).forEach((b, i) => { if (b.left < boxes[i].right - 1 && b.top < boxes[i].bottom - 1)
      faults.push(`${name(row)} overlaps itself`); });
  }
  return faults; })()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    opened = look.Browser(look.chromium())
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two runs beside each other, so every part of the page; one has an invalid measurement and a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [made_run.write(folder / "a-run-whose-name-is-long-and-has-no-place-to-break-anywhere".replace("-", "_")),
            made_run.write(folder / "<img src=x onerror=document.title=1>", right=11, valid=False)]
    return Path(report([str(run) for run in runs])).as_uri()


@pytest.mark.parametrize("width", look.WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overflows_overlaps_or_is_hard_to_read(browser: Any, page: str, width: int, dark: bool) -> None:
    browser.open(page, width, dark)
    assert browser.ask("innerWidth") == width
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") is not dark
    assert browser.ask("document.querySelectorAll('svg').length") == 5
    assert browser.ask(FAULTS) == []


def test_no_request_leaves_the_page_and_no_name_becomes_an_element(browser: Any, page: str) -> None:
    browser.open(page, 1280)
    assert browser.requests == [page]
    assert browser.ask("document.querySelectorAll('script, img, link, iframe, object, [onerror]').length") == 0
    assert browser.ask("document.title").endswith("<img src=x onerror=document.title=1>")


def test_what_would_ask_is_refused_by_the_pages_policy(browser: Any, page: str, tmp_path: Path) -> None:
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bound = Path(unquote(page.removeprefix("file://"))).read_text(encoding="utf-8")
    try:
        for name, text in (("free", "</body>"), ("bound", bound)):  # the first shows that this browser would ask and run
            planted = f'<img src="http://127.0.0.1:{server.server_port}/{name}"><script>document.title = "ran"</script>'
            (tmp_path / f"{name}.html").write_text(text.replace("</body>", planted + "</body>"), encoding="utf-8")
            browser.open((tmp_path / f"{name}.html").as_uri(), 390)
            assert browser.ask("document.images.length") == 1
            assert (browser.ask("document.title") == "ran") is (name == "free")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/free"]


def test_a_screen_reader_finds_each_plots_words_and_headings_in_order(browser: Any, page: str) -> None:
    browser.open(page, 1280)
    nodes = [node for node in browser.send("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    plots = [node["name"]["value"] for node in nodes if node["role"]["value"] in ("image", "img")]
    assert len(plots) == 5 and all(len(words) > 50 for words in plots)
    levels = [next(item["value"]["value"] for item in node["properties"] if item["name"] == "level")
              for node in nodes if node["role"]["value"] == "heading"]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in zip(levels, levels[1:], strict=False))
    regions = [node["name"]["value"] for node in nodes if node["role"]["value"] == "region"]
    assert "Latency against accuracy" in regions and all(regions)


@pytest.mark.parametrize(("body", "fault"), [
    ('<div style="width: 501px; margin-left: 8px; position: absolute; left: 0">x</div>', "the page is 509 px wide"),
    ('<p style="color: #999">pale</p>', '"pale" has a contrast of 2.8'),
    ('<p style="font-size: 9px">tiny</p>', '"tiny" is 9px small'),
    ('<svg><text y="20">one</text><text y="22" x="5">two</text></svg>', '"one" and "two" overlap'),
    ('<p style="margin-left: -50px">out</p>', '"out" leaves the page'),
    ('<div class="row"><b>left</b><b style="margin-left: -20px">right</b></div>', '"leftright" overlaps itself'),
])
def test_the_faults_are_found_where_there_are_some(browser: Any, tmp_path: Path, body: str, fault: str) -> None:
    (tmp_path / "bad.html").write_text("<!doctype html><meta name=viewport content='width=device-width'>"
                                       f"<body style='background: #fff; color: #000'>{body}")
    browser.open((tmp_path / "bad.html").as_uri(), 390)
    assert fault in browser.ask(FAULTS)
