"""A page as headless Chromium shows it: what it measures, what it loads, what it complains about."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

LAPTOP = (1366, 768)
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

_LISTEN = """<script>
window.complaints = [];
window.addEventListener("error", e => {
  complaints.push(e.message || "not loaded: " + e.target.outerHTML);
}, true);
window.addEventListener("unhandledrejection", e => complaints.push(String(e.reason)));
</script>"""
_MEASURE = """<script>
window.addEventListener("load", () => {
  const box = element => { const at = element.getBoundingClientRect(); return [at.width, at.height]; };
  const root = document.documentElement;
  const measured = {
    complaints: complaints,
    requests: performance.getEntriesByType("resource").map(entry => entry.name),
    pictures: [...document.querySelectorAll("img, figure > svg")].map(box),
    unloaded: [...document.querySelectorAll("img")].filter(image => !image.naturalWidth).length,
    scroll_width: root.scrollWidth,
    client_width: root.clientWidth,
    is_dark: matchMedia("(prefers-color-scheme: dark)").matches,
    background: getComputedStyle(document.body).backgroundColor,
    text: getComputedStyle(document.body).color,
  };
  const found = document.createElement("pre");
  found.id = "measured";
  found.textContent = JSON.stringify(measured);
  document.body.append(found);
});
</script>"""


@dataclass(frozen=True)
class Seen:
    """What Chromium measured (``_MEASURE``), and the lines of its console."""

    measured: dict[str, Any]
    console: list[str]


def look(page: Path, scratch: Path, *, dark: bool) -> Seen:
    """Open a copy of a page that measures itself."""
    text = page.read_text(encoding="utf-8")
    copy = scratch / f"{'dark' if dark else 'light'}.html"
    copy.write_text(
        text.replace("<head>", "<head>" + _LISTEN, 1).replace("</body>", _MEASURE + "</body>", 1),
        encoding="utf-8",
    )
    done = subprocess.run(
        [*command(scratch, dark=dark), "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    measured = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert measured, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(json.loads(unescape(measured[1])), console)


def command(scratch: Path, *, dark: bool) -> list[str]:
    """Return the command that starts Chromium, at laptop width."""
    assert CHROMIUM is not None
    return [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--enable-logging=stderr",
        "--hide-scrollbars",
        "--virtual-time-budget=5000",
        f"--user-data-dir={scratch / 'profile'}",
        f"--window-size={LAPTOP[0]},{LAPTOP[1]}",
        # Blink's settings call it 0 where pages are shown dark, 1 where they are light.
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
