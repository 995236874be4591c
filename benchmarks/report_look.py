"""What a run's report looks like: screenshots at three widths, light and dark, made by a headless Chromium.

    python benchmarks/report_look.py RUN [RUN] [--out benchmarks/screenshots]

Needs a Chromium ($EDGEDISTILL_CHROMIUM, or chromium, chromium-browser or google-chrome on PATH) and Pillow, which makes the
files small. `Browser` is also what tests/test_report_look.py looks with.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from edgedistill.report import report

WIDTHS = 390, 768, 1280  # CSS px: a phone, a tablet, a laptop
COLOURS = 32  # of a picture's palette
MOST = 100_000  # bytes of a file


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    names = [os.environ.get("EDGEDISTILL_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


class Browser:
    """One headless Chromium, driven through DevTools on a pipe: no port, no driver.

    `requests` are the addresses that the open page asked for, the page's own included.
    """

    def __init__(self, binary: str, patience: float = 60.0) -> None:
        self.patience, self.requests, self._count, self._rest = patience, [], 0, b""
        self._profile = tempfile.TemporaryDirectory(prefix="look-", ignore_cleanup_errors=True)
        down, self._up = os.pipe()
        self._down, up = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
                 "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
                 "--disable-font-subpixel-positioning", "--font-render-hinting=full",  # equal letters: smaller pictures
                 f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe"]
        command = [binary, *flags, "about:blank"]
        # DevTools reads file 3 and writes file 4; bash puts them there whatever their numbers are here (sh cannot from 10 on).
        self.process = subprocess.Popen(["bash", "-c", f"exec \"$@\" 3<&{down} 4>&{up}", "bash", *command],
                                        pass_fds=(down, up), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(down), os.close(up)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command and its result. Raises `RuntimeError` for its error, `TimeoutError` for none."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if method.partition(".")[0] != "Target":
            message["sessionId"] = self._session
        os.write(self._up, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda found: found.get("id") == self._count)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, address: str, width: int, dark: bool = False, height: int = 800) -> None:
        """Loads a page as a screen of `width` CSS px shows it."""
        self.requests.clear()
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.send("Emulation.setEmulatedMedia", media="screen",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.send("Page.navigate", url=address)
        self._until(lambda found: found.get("method") == "Page.loadEventFired")

    def ask(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", "script failed"))
        return result["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"])

    def close(self) -> None:
        """Ends the browser."""
        os.close(self._up), os.close(self._down)
        self.process.terminate()
        self.process.wait()
        self._profile.cleanup()

    def _until(self, wanted: Any) -> dict[str, Any]:
        end = time.monotonic() + self.patience
        while True:
            while b"\0" in self._rest:
                text, _, self._rest = self._rest.partition(b"\0")
                found = json.loads(text)
                if found.get("method") == "Network.requestWillBeSent":
                    self.requests.append(found["params"]["request"]["url"])
                if wanted(found):
                    return found
            if not select.select([self._down], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing for {self.patience:g} s")
            part = os.read(self._down, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended")
            self._rest += part


def pieces(picture: bytes) -> list[bytes]:
    """The picture, cut from top to bottom into as few equal pieces as are each within `MOST` bytes."""
    from PIL import Image

    whole = Image.open(io.BytesIO(picture)).convert("RGB")
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in _colours(whole) for value in colour])
    for count in range(1, whole.height):
        cuts = [whole.height * i // count for i in range(count + 1)]
        made = []
        for top, bottom in zip(cuts, cuts[1:], strict=False):
            sink = io.BytesIO()
            cut = whole.crop((0, top, whole.width, bottom)).quantize(palette=palette, dither=Image.Dither.NONE)
            cut.save(sink, "PNG", optimize=True)
            made.append(sink.getvalue())
        if max(map(len, made)) <= MOST:
            return made
    return made


def _colours(picture: Any) -> list[tuple[int, int, int]]:
    """The most frequent colours that differ from each other: all hues stay, the shades at letters' edges are merged."""
    chosen: list[tuple[int, int, int]] = []
    for _, colour in sorted(picture.getcolors(1 << 24), reverse=True):
        if len(chosen) < COLOURS and all(max(abs(a - b) for a, b in zip(colour, other, strict=True)) > 8 for other in chosen):
            chosen.append(colour)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", help="run folders, as for edgedistill report")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "screenshots")
    args = parser.parse_args()
    binary = chromium()
    if not binary:
        raise SystemExit("no Chromium here; install one (apt-get install chromium) or name it in $EDGEDISTILL_CHROMIUM")
    page = Path(report(args.runs)).resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("report_*.png"):  # of a longer page
        old.unlink()
    browser = Browser(binary)
    try:
        for width in WIDTHS:
            for dark in (False, True):
                browser.open(page.as_uri(), width, dark)
                for part, data in enumerate(pieces(browser.picture()), 1):
                    file = args.out / f"report_{width}_{'dark' if dark else 'light'}_{part}.png"
                    file.write_bytes(data)
                    print(f"{file}: {len(data) / 1e3:.0f} kB")
    finally:
        browser.close()


if __name__ == "__main__":
    main()
