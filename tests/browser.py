"""A page in a real headless browser: what overflows. No driver is needed, Chromium's own options do."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
SECONDS = 120
MEASURE = """
<script>
const measure = (view, width, scrolling, script) => {
  const page = view.contentDocument, wide = [];
  for (const found of page.querySelectorAll('body *')) {
    if (scrolling && found.closest('.wide, pre') && !found.matches('.wide, pre')) continue;
    const box = found.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !found.closest('svg')) wide.push(found.tagName + '.' + found.className);
  }
  const scrolled = [...page.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1);
  return {
    scroll: page.documentElement.scrollWidth, wide: wide.slice(0, 5), answer: eval(script),
    scrolled: scrolled.map(e => e.firstElementChild.className),
  };
};
window.onload = () => {
  const views = [...document.querySelectorAll('iframe')];
  const found = views.map((view, k) => measure(view, ...ASKED[k]));
  const out = document.createElement('pre'); out.id = 'measured'; out.textContent = JSON.stringify(found);
  document.body.replaceChildren(out);
};
</script>
"""


class View(NamedTuple):
    """A page to lay out.

    Attributes
    ----------
    width
        CSS pixels.
    scrolling
        What scrolls within a box of its own does not count.
    script
        JavaScript expression over `page` (the document), whose value comes back as `answer`.
    """

    page: str
    width: int
    scrolling: bool = True
    script: str = "null"


def chromium() -> str:
    """Return the browser's path; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")


def run(tmp_path: Path, *arguments: str) -> str:
    """Run the browser once, with a profile of its own; returns what it prints."""
    command = [chromium(), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout


def measured(tmp_path: Path, views: list[View]) -> list[dict]:
    """Lay pages out, all in one run of the browser; say of each how wide it is and what sticks out."""
    frames = [
        f'<iframe style="border:0;width:{view.width}px;height:900px" srcdoc="{html.escape(view.page)}"></iframe>'
        for view in views
    ]
    asked = json.dumps([[view.width, view.scrolling, view.script] for view in views])
    file = tmp_path / "measure.html"
    start = "<!doctype html><meta charset=utf-8><body style='margin:0'>"
    file.write_text(f"{start}<script>const ASKED = {asked}</script>{MEASURE}{''.join(frames)}", encoding="utf-8")
    printed = run(tmp_path, "--virtual-time-budget=10000", "--dump-dom", file.as_uri())
    return json.loads(html.unescape(re.search(r'id="measured">(.*?)</pre>', printed, re.S)[1]))


def as_printed(page: str) -> str:
    """Return the page with its print rules on, for a browser that shows it on a screen."""
    return page.replace("@media print", "@media all").replace("@media screen", "@media not all")


def scripted(tmp_path: Path, page: str, script: str) -> dict:
    """Open a page from a file, run a script in it (the body of an async function), and return what it returns.

    Whatever the page asks the network for is counted as `requests`; errors of its scripts are in `errors`.
    """
    watch = """<script>window.pageErrors = [];
    addEventListener('error', event => pageErrors.push(event.message));
    addEventListener('unhandledrejection', event => pageErrors.push(String(event.reason)));
    addEventListener('securitypolicyviolation', event => pageErrors.push(event.blockedURI));</script>"""
    ask = """<script>(async () => {
    let answer = null;
    try { answer = await (async () => { SCRIPT })(); } catch (error) { pageErrors.push(String(error)); }
    const requests = performance.getEntriesByType('resource').map(e => e.name).filter(e => !e.startsWith('blob:'));
    const out = document.createElement('pre'); out.id = 'measured';
    out.textContent = JSON.stringify({answer, requests, errors: pageErrors});
    document.body.replaceChildren(out);
    })();</script>"""
    file = tmp_path / "scripted.html"
    asked = page.replace("<style>", watch + "<style>", 1).replace(
        "</body>", ask.replace("SCRIPT", script) + "</body>", 1
    )
    file.write_text(asked, encoding="utf-8")
    printed = run(tmp_path, "--window-size=1280,900", "--virtual-time-budget=10000", "--dump-dom", file.as_uri())
    return json.loads(html.unescape(re.search(r'id="measured">(.*?)</pre>', printed, re.S)[1]))
