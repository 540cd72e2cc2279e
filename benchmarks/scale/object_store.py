"""Writing and reading embeddings on object storage, beside the same on this machine's disk.

    python benchmarks/scale/object_store.py [--storage s3|gs|az] [--shards N] [--rounds N]

The server is moto's, or that of the tests for Google's and Azure's storage, in a process of its own on loopback. It is
written in Python, so that its own work is most of what is timed; the requests, which decide on a real storage, are
counted. Both sides take turns in one run.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cache.claims import claims_on
from cache.embeddings import EmbeddingStore, Identity, Layout, Shard, open_embeddings
from cache.storage.fsspec_client import S3Client
from cache.storage.locations import Location, location_of
from cache.storage.objects import client_for
from cache.upkeep.resume import create_embeddings
from tests import cloud_servers
from tests.cloud_servers import Azure, Google, azure_environment, google_environment
from tests.s3_server import environment, serving

SHARD, LAYERS, WIDTH = 1024, 13, 768


CLOUDS = {"gs": (Google, google_environment), "az": (Azure, azure_environment)}


def _serve(storage: str, answers: Connection) -> None:
    """Serve, and answer how many requests of which kind there have been since it was last asked."""
    if storage == "s3":
        with serving() as address:
            answers.send(environment(address))
            answers.recv()
        return
    handler, environment_of = CLOUDS[storage]
    with cloud_servers.serving(handler) as server:
        server.begin("bench")
        answers.send(environment_of(server.address))
        while answers.recv() != "end":
            answers.send(Counter(method for method, _ in server.storage.requests))
            server.storage.requests.clear()


@contextmanager
def server(storage: str) -> Iterator[Connection]:
    """Run the server in a process of its own; its way stands in the environment from now on."""
    ours, its = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(storage, its))
    process.start()
    os.environ.update(ours.recv())
    try:
        yield ours
    finally:
        ours.send("end")
        process.join()


def s3_files() -> Any:
    """Return s3fs's own client."""
    return cast(S3Client, client_for("s3", os.getpid())).files


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return how long something takes, and how much of this process's CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def write(store: Location, content: Shard, n_shards: int, state: Path) -> None:
    """Write shard by shard, each claimed, as `embed` does."""
    layout = Layout(n_shards * SHARD, tuple(f"block_{k}" for k in range(LAYERS)), (WIDTH,) * LAYERS, WIDTH)
    with closing(claims_on(store, state)) as claims:
        claims.share()
        made = create_embeddings(store, layout, Identity({"expert": "toy"}, "s", "r"))
        for shard in range(n_shards):
            with claims.claim(shard):
                made.write(shard, content, claims.confirm)


def counted(work: Callable[[], object], storage: str, server: Connection) -> Counter[str]:
    """Return the requests that something sends, by kind."""
    if storage == "s3":
        return counted_by_s3fs(work)
    server.send("count")
    server.recv()
    work()
    server.send("count")
    answer: Counter[str] = server.recv()
    return answer


def counted_by_s3fs(work: Callable[[], object]) -> Counter[str]:
    """Return the requests that something sends to S3, by kind."""
    sent: Counter[str] = Counter()
    client = s3_files()
    inner, outer = client._call_s3, client.call_s3  # noqa: SLF001

    async def call_inner(method: str, *args: object, **kwargs: object) -> object:
        sent[method] += 1
        return await inner(method, *args, **kwargs)

    def call_outer(method: str, *args: object, **kwargs: object) -> object:
        sent[method] += 1
        return outer(method, *args, **kwargs)

    client._call_s3, client.call_s3 = call_inner, call_outer  # noqa: SLF001
    try:
        work()
    finally:
        del client._call_s3, client.call_s3  # noqa: SLF001
    return sent


def reading(store: Location) -> dict[str, Callable[[], object]]:
    """Return what is read, by name."""
    opened: EmbeddingStore = open_embeddings(store)
    return {
        "read all layers": opened.read_layers,
        "read one layer": lambda: opened.read_layer("block_7"),
        "read the embedding": opened.read_embedding,
        "look for pending shards": lambda: open_embeddings(store).pending(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=["s3", *CLOUDS], default="s3")
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    content = Shard(
        rng.normal(size=(SHARD, LAYERS, WIDTH)).astype(np.float16), rng.normal(size=(SHARD, WIDTH)).astype(np.float16)
    )
    bytes_of = {
        "write": content.layers.nbytes + content.embedding.nbytes,
        "read all layers": content.layers.nbytes,
        "read one layer": content.layers.nbytes // LAYERS,
        "read the embedding": content.embedding.nbytes,
    }
    took: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory() as name, server(options.storage) as answers:
        if options.storage == "s3":
            s3_files().call_s3("create_bucket", Bucket="bench")
        bucket = location_of(f"{options.storage}://bench/study/toy.zarr")
        places = {"disk": Path(name) / "toy.zarr", "bucket": bucket}
        for _, (kind, store) in itertools.product(range(options.rounds), places.items()):
            rounds = took.setdefault(kind, defaultdict(list))
            rounds["write"].append(seconds(partial(write, store, content, options.shards, Path(name))))
            for what, work in reading(store).items():
                rounds[what].append(seconds(work))
        count = partial(counted, storage=options.storage, server=answers)
        requests = {what: count(work) for what, work in reading(bucket).items()}
        requests["write"] = count(lambda: write(bucket, content, options.shards, Path(name)))
    for what in took["disk"]:
        rates = {}
        for kind in took:
            whole, cpu = (median(each) for each in zip(*took[kind][what], strict=True))
            size = bytes_of.get(what, 0) * options.shards / 1e6
            rates[kind] = (
                f"{size / whole:.0f} MB/s, CPU {size / cpu:.0f} MB/s" if size else f"{whole:.2f} s, CPU {cpu:.2f} s"
            )
        sent = ", ".join(f"{n} {method}" for method, n in sorted(requests[what].items()))
        print(f"{what}: disk {rates['disk']}; bucket {rates['bucket']}; {options.shards} shards took {sent}")


if __name__ == "__main__":
    main()
