"""Making a map of many records, and moving it in a real browser: seconds, bytes, milliseconds a frame.

    python -m benchmarks.maps --points 50000 --umap

Vectors are made up: 30 clouds of 50 axes. A frame is a turn of the wheel or a step of the hand followed by the
browser's next picture; `script` is what the page itself computes of it. Needs Chromium and the package aiohttp.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from stages.ecg_map.colours import Colouring, of_classes, of_shares, of_values
from stages.ecg_map.page import render
from stages.ecg_map.plane import plane
from stages.ecg_map.settings import MapSettings
from stages.plots.strokes import packed_strokes
from tests.browser import FLAGS, chromium

FRAMES = 120
MOVE = """(async () => {
  const canvas = document.getElementById('points'), box = canvas.getBoundingClientRect(), frames = [], script = [];
  const next = () => new Promise(done => requestAnimationFrame(done));
  const pen = canvas.getContext('2d');
  for (let k = 0; k < FRAMES; k++) {
    await next();
    const started = performance.now();
    if (k % 2) {
      canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: k < FRAMES / 2 ? -40 : 40, cancelable: true,
        clientX: box.left + box.width / 2, clientY: box.top + box.height / 2}));
    } else for (const [type, x] of [['pointerdown', 300], ['pointermove', 310], ['pointerup', 310]]) {
      canvas.dispatchEvent(new PointerEvent(type, {clientX: box.left + x, clientY: box.top + 200, pointerId: 1}));
    }
    await next();
    await new Promise(done => setTimeout(done, 0));
    frames.push(performance.now() - started);
    const again = performance.now(); ecgMap.draw(); script.push(performance.now() - again);
  }
  const hover = performance.now();
  for (let k = 0; k < 100; k++) canvas.dispatchEvent(new PointerEvent('pointermove',
    {clientX: box.left + 5 * k, clientY: box.top + 3 * k, pointerId: 2}));
  const hovers = (performance.now() - hover) / 100;
  const choosing = performance.now(); document.getElementById('visible').click();
  return JSON.stringify({frames, script, hovers, chosen: performance.now() - choosing,
    size: [canvas.width, canvas.height]});
})()"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--thumbnails", type=int, default=3000, help="a second page, of that many small ECGs")
    parser.add_argument("--umap", action="store_true", help="time UMAP as well; minutes")
    options = parser.parse_args()
    vectors, group = clouds(options.points)
    for method in ["pca"] + ["umap"] * options.umap:
        started = time.perf_counter()
        places, _, _ = plane(vectors, method, seed=0)
        print(f"{method}: {options.points:,} x {vectors.shape[1]} in {time.perf_counter() - started:.1f} s")
    found, ids = ways(group), [f"{40_000_000 + k}" for k in range(options.points)]
    started = time.perf_counter()
    page = render(MapSettings(), method, places, found, ids, None, [])
    size = len(page.encode()) / 1e6
    seconds = time.perf_counter() - started
    print(f"page of {options.points:,} points, {len(found)} colourings: {seconds:.1f} s, {size:.1f} MB")
    print_frames(asyncio.run(moved(page)))
    with_ecgs(options.thumbnails, places, found, ids)


def clouds(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors float32 [n, 50] of 30 clouds, and whose each is."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 30, n)
    return (3 * rng.normal(size=(30, 50))[group] + rng.normal(size=(n, 50))).astype(np.float32), group


def ways(group: np.ndarray) -> list[Colouring]:
    """Return 20 colourings, as of a study with several tasks and experts."""
    rng = np.random.default_rng(1)
    found = [of_classes("task", f"label {k}", group % (k + 2), [f"class {c}" for c in range(k + 2)]) for k in range(6)]
    found += [of_values("task", f"value {k}", rng.normal(size=len(group))) for k in range(4)]
    return [*found, *(of_shares("gate", f"weight {k}", rng.random(len(group))) for k in range(10))]


def with_ecgs(n: int, places: np.ndarray, found: list[Colouring], ids: list[str]) -> None:
    """Time a page with small ECGs."""
    n = min(n, len(places))
    ecgs = beats(64)
    started = time.perf_counter()
    strokes = np.stack([packed_strokes(ecgs[k % 64], 500.0) for k in range(n)])
    strokes += np.random.default_rng(0).integers(-1, 2, strokes.shape, dtype=np.int8)  # no two alike, as of noise
    cut = [Colouring(**{**vars(one), "codes": one.codes[:n]}) for one in found]
    page = render(MapSettings(), "pca", places[:n], cut, ids[:n], strokes, [])
    size = len(page.encode()) / 1e6
    print(f"page of {n:,} points with small ECGs: {time.perf_counter() - started:.1f} s, {size:.1f} MB")


def beats(n: int) -> np.ndarray:
    """Return generated ECGs, float [n, 12, 5000] in mV."""
    from stages.experts.signals.reference_ecgs import reference_signals

    return reference_signals(n, 5000, 500.0, seed=0)


def print_frames(found: dict[str, Any]) -> None:
    for name in ("frames", "script"):
        low, high = np.percentile(found[name], (50, 95))
        print(f"{name}: median {low:.1f} ms, 95 % below {high:.1f} ms, of {len(found[name])}")
    width, height = found["size"]
    print(f"hover {found['hovers']:.2f} ms, choosing all {found['chosen']:.0f} ms, {width} x {height} pixels")


async def moved(page: str) -> dict[str, Any]:
    """Open a page in Chromium, move it and return what the script measured."""
    with tempfile.TemporaryDirectory() as folder:
        file, profile = Path(folder, "map.html"), Path(folder, "profile")
        file.write_text(page, encoding="utf-8")
        command = [
            chromium(),
            *FLAGS,
            "--window-size=1600,1000",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
        ]
        browser = subprocess.Popen([*command, file.as_uri()], stderr=subprocess.DEVNULL)
        try:
            return await _asked(profile)
        finally:
            browser.terminate()
            browser.wait()


async def _asked(profile: Path) -> dict[str, Any]:
    port_file = profile / "DevToolsActivePort"
    while not port_file.is_file() or not port_file.read_text().strip():
        await asyncio.sleep(0.1)
    port = port_file.read_text().split()[0]
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as listed:
            target = next(one for one in json.loads(await listed.text()) if one["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as channel:
            number = 1
            while await _evaluated(channel, number, "typeof ecgMap") != "object":
                number += 1
                await asyncio.sleep(0.1)
            return json.loads(await _evaluated(channel, number + 1, MOVE.replace("FRAMES", str(FRAMES))))


async def _evaluated(channel: aiohttp.ClientWebSocketResponse, number: int, script: str) -> Any:
    asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
    await channel.send_str(json.dumps({"id": number, "method": "Runtime.evaluate", "params": asked}))
    while True:
        answer = json.loads((await channel.receive()).data)
        if answer.get("id") == number:
            if "exceptionDetails" in answer["result"]:
                raise RuntimeError(answer["result"]["exceptionDetails"])
            return answer["result"]["result"].get("value")


if __name__ == "__main__":
    main()
