"""100 million ECGs on 64 and 512 workers, by discrete simulation: hours, requests, money, and what breaks first.

    python benchmarks/scale/cluster_simulation.py [--records N] [--workers N ...] [--rate RECORDS_PER_S]

What is simulated is `ensemble embed` on a bucket: workers that start, claim shards by leases, compute, write, die and
come back. Three ways of finding the next shard are put beside the ideal (records / rate / workers, nothing else):

    in order    every worker walks the same list from its beginning, as one process in a folder does
    shuffled    every worker walks a list of its own order and asks anew after `MISSES` shards in a row that others have
    scheduler   Dask gives each worker its next shard (`--scheduler`)

Constants that were measured are those of docs/scaling.md; latencies, limits and prices of the storage are assumptions,
and options of this script.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from stages.embed.shard_pipeline import MISSES

BYTES_OF_A_RECORD = 21_505
"""13 layers of 768 numbers and one vector, float16, and the flag."""
REQUESTS_TO_WRITE = 9
START_S_OF_A_MILLION = 0.3
"""Every process reads all record ids and digests once."""
LOAD_S = 20.0
"""Process, network and weights, beside the above."""
CLIENT_BYTES_A_S = 255e6
"""What one core of ours writes; the storage may take less."""
LEASE_S = 60.0


@dataclass(frozen=True)
class World:
    """What is not ours to choose."""

    records: int
    workers: int
    rate: float
    """Records a second that a worker computes."""
    latency_s: float = 0.025
    requests_a_s: float = 3_500.0
    """What a bucket takes under one prefix."""
    hours_between_deaths: float = 8.0
    """Of one worker, as machines that may be taken away have them."""
    away_s: float = 180.0
    dollars_an_hour: float = 2.0
    dollars_a_request: float = 5e-6
    scheduler_s: float = 0.0024
    """Of Dask's scheduler and client for a task, one after another; measured, see docs/scaling.md."""


@dataclass
class Cluster:
    """One run: shards, who holds them, and what it cost."""

    world: World
    shard_records: int
    way: str
    seed: int = 0
    requests: int = 0
    deaths: int = 0
    repeated: float = 0.0
    """Records computed and lost."""
    storage_free_at: float = 0.0
    scheduler_free_at: float = 0.0
    events: list[tuple[float, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.n_shards = -(-self.world.records // self.shard_records)
        self.free = list(range(self.n_shards))
        self.held: dict[int, tuple[int, float]] = {}
        self.dead: list[tuple[float, int]] = []
        """Shards whose worker died, and when their leases end."""
        self.passed = [0] * self.world.workers
        """How far a worker has walked the list, in order."""
        self.taken = 0
        self.n_done = 0
        self.ended_at = 0.0

    def run(self) -> float:
        """Return the seconds until every shard is written."""
        start_s = LOAD_S + START_S_OF_A_MILLION * self.world.records / 1e6
        for worker in range(self.world.workers):
            self._at(start_s + self.random.random() * 5, worker, "next")
            self._at(self._life(), worker, "dies")
        while self.n_done < self.n_shards:
            now, worker, what = heapq.heappop(self.events)
            getattr(self, f"_{what}")(now, worker, start_s)
        return self.ended_at

    def _at(self, when: float, worker: int, what: str) -> None:
        heapq.heappush(self.events, (when, worker, what))

    def _life(self) -> float:
        return self.random.expovariate(1 / (self.world.hours_between_deaths * 3600))

    def _ask(self, now: float, n: int) -> float:
        """Send so many requests, one after another; return when the last is answered."""
        self.requests += n
        self.storage_free_at = max(self.storage_free_at, now) + n / self.world.requests_a_s
        return max(now + n * self.world.latency_s, self.storage_free_at)

    def _scheduled(self, now: float) -> float:
        """Return when a worker knows what to do next."""
        if self.way != "scheduler":
            return now
        self.scheduler_free_at = max(self.scheduler_free_at, now) + self.world.scheduler_s
        return self.scheduler_free_at

    # ---- what a worker does ------------------------------------------------------------------------------------------

    def _next(self, now: float, worker: int, _: float) -> None:
        while self.dead and self.dead[0][0] <= now:
            self.free.append(heapq.heappop(self.dead)[1])
        if not self.free:
            if self.held or self.dead:
                self._at(self._ask(now, 1 + self.n_shards // 1000) + 2.0, worker, "next")
            return
        ready = self._ask(self._scheduled(now), self._looks(worker))
        self.held[worker] = (self.free.pop(), ready)
        self._at(ready + self.shard_records / self.world.rate, worker, "computes")

    def _computes(self, now: float, worker: int, _: float) -> None:
        sent = now + self.shard_records * BYTES_OF_A_RECORD / CLIENT_BYTES_A_S
        self._at(max(self._ask(now, REQUESTS_TO_WRITE), sent), worker, "writes")

    def _looks(self, worker: int) -> int:
        """Count requests until a shard is ours: a look and a claim at each of the others' on the way, two of ours."""
        if self.way == "scheduler":
            return 2
        if self.way == "in order":
            self.taken += 1
            others, self.passed[worker] = self.taken - self.passed[worker] - 1, self.taken
            return 2 * others + 2
        misses = 0
        while misses < MISSES and self.random.random() < self._stale(worker):
            misses += 1
        if misses < MISSES:
            return 2 * misses + 2
        self.passed[worker] = self.n_done
        return 2 * misses + 2 + 1 + self.n_shards // 1000

    def _stale(self, worker: int) -> float:
        """Share of a worker's list that others have taken since it was made."""
        since = self.n_done + len(self.held) - self.passed[worker]
        return min(1.0, since / max(1, self.n_shards - self.passed[worker]))

    def _writes(self, now: float, worker: int, _: float) -> None:
        del self.held[worker]
        self.n_done += 1
        self.ended_at = now
        self._at(now, worker, "next")

    def _dies(self, now: float, worker: int, start_s: float) -> None:
        self.deaths += 1
        if worker in self.held:
            shard, since = self.held.pop(worker)
            self.repeated += min(self.shard_records, max(0.0, now - since) * self.world.rate)
            lease = 0.0 if self.way == "scheduler" else LEASE_S
            heapq.heappush(self.dead, (now + lease, shard))
        self.events = [event for event in self.events if event[1] != worker or event[2] == "dies"]
        heapq.heapify(self.events)
        back = now + self.world.away_s + start_s
        self._at(back, worker, "next")
        self._at(back + self._life(), worker, "dies")


COLUMNS = ("workers", "shard", "way", "hours", "of ideal", "requests", "deaths", "repeated", "$ GPUs", "$ requests")


def row(world: World, shard_records: int, way: str) -> tuple[str, ...]:
    """Simulate one setting."""
    cluster = Cluster(world, shard_records, way)
    seconds = cluster.run()
    ideal_s = world.records / world.rate / world.workers
    return (
        f"{world.workers}",
        f"{shard_records}",
        way,
        f"{seconds / 3600:.2f}",
        f"{seconds / ideal_s:.2f}",
        f"{cluster.requests:,}",
        f"{cluster.deaths}",
        f"{cluster.repeated / world.records:.2%}",
        f"{seconds / 3600 * world.workers * world.dollars_an_hour:,.0f}",
        f"{cluster.requests * world.dollars_a_request:,.0f}",
    )


def line(cells: Sequence[str]) -> str:
    """Put cells under their heads."""
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, (7, 6, 9, 7, 8, 12, 6, 8, 8, 10), strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--shards", type=int, nargs="+", default=[1024, 8192], help="records a shard")
    parser.add_argument(
        "--rate", type=float, default=275.0, help="records a second and worker (ECG-FM, A100: published)"
    )
    parser.add_argument("--latency-ms", type=float, default=25.0, help="of one request")
    parser.add_argument("--hours-between-deaths", type=float, default=8.0, help="of one worker")
    options = parser.parse_args(arguments)
    print(f"{options.records:,} records at {options.rate:g}/s a worker, {BYTES_OF_A_RECORD:,} bytes a record")
    print(line(COLUMNS))
    for workers in options.workers:
        world = World(
            options.records,
            workers,
            options.rate,
            latency_s=options.latency_ms / 1000,
            hours_between_deaths=options.hours_between_deaths,
        )
        for shard_records in options.shards:
            for way in ("in order", "shuffled", "scheduler"):
                print(line(row(world, shard_records, way)), flush=True)


if __name__ == "__main__":
    main()
