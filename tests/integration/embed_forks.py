"""Starts `embed` processes for the fault tests by forking one that has everything imported: that saves seconds a kill.

Each line on stdin is a JSON task {"folder": ..., "log": ..., "settings": {...}}, answered with the process id. A
process appends to its log: `begun N` when N readable records go into the network, `written N` when a shard with N of
them counts, `computed N` when it is through with N records of any kind, at the end `finished` or `error MESSAGE`.
"""

import json
import os
import signal
import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cache.embeddings import EmbeddingStore, Shard
from pipeline.compute.embedding import embed_settings
from pipeline.study.folder import Study
from stages.embed import Embedder, EmbedPaths
from stages.embed import shard_pipeline as line
from stages.experts import Expert
from stages.experts.run import Vectors


def embed(task: dict) -> None:
    os.chdir(task["folder"])
    log = os.open(task["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def say(what: str) -> None:
        os.write(log, f"{what}\n".encode())

    whole_write = EmbeddingStore.write

    def write(store: EmbeddingStore, shard: int, content: Shard, *more: object) -> None:
        whole_write(store, shard, content, *more)
        say(f"written {np.isfinite(content.embedding).any(axis=1).sum()}")

    run_expert = line.run_expert

    def run(expert: Expert, x: Tensor, *more: object) -> Vectors:
        say(f"begun {len(x)}")
        return run_expert(expert, x, *more)

    EmbeddingStore.write, line.run_expert = write, run
    study = Study()
    settings = replace(embed_settings(study, "ecgfm"), **task.get("settings", {}))
    paths = EmbedPaths(study.records, study.signals, study.embedding("ecgfm"), study.state)
    try:
        Embedder(settings, paths).run(progress=lambda n: say(f"computed {n}"))
    except Exception as error:
        say(f"error {error}")
    else:
        say("finished")


def main() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for these children
    for task in sys.stdin:
        pid = os.fork()
        if pid == 0:
            embed(json.loads(task))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
