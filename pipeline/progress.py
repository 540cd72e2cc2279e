"""Progress of long work: a bar with rate and time left on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 10.0


@contextmanager
def progress(title: str, unit: str = "records") -> Iterator[Callable[..., None]]:
    """Give a callback (done, total, note=""); without a terminal it prints a line at most every ten seconds."""
    if sys.stderr.isatty():
        with _bar(title, unit) as update:
            yield update
    else:
        yield _Lines(title, unit)


@contextmanager
def counting(title: str, already: int, total: int) -> Iterator[Callable[[int], None]]:
    """Give a callback that takes the records of each step; `already` of `total` were there before."""
    done = already
    with progress(title) as update:

        def count(records: int) -> None:
            nonlocal done
            done += records
            update(done, total)

        yield count


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, rate="")
        meter = _Meter()

        def update(done: int, total: int, note: str = "") -> None:
            rate = f"{meter.rate(done):.1f} {unit}/s" + (f", {note}" if note else "")
            bar.update(task, completed=done, total=total, rate=rate)

        yield update


class _Meter:
    """Rate since the first call, so that resumed work does not count."""

    def __init__(self) -> None:
        self.started: tuple[float, int] | None = None

    def rate(self, done: int) -> float:
        now = time.monotonic()
        if self.started is None:
            self.started = (now, done)
        since, first = self.started
        return (done - first) / (now - since) if now > since else 0.0


class _Lines:
    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit, self.meter = title, unit, _Meter()
        self.printed = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        rate = self.meter.rate(done)
        now = time.monotonic()
        if now - self.printed < LINE_EVERY_S and done < total:
            return
        self.printed = now
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        print(
            f"{self.title}: {done}/{total} {self.unit}, {rate:.1f}/s{left}{f', {note}' if note else ''}",
            file=sys.stderr,
            flush=True,
        )
