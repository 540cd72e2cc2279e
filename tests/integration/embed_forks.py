"""Starts `embed` processes for the fault tests by forking one that has everything imported: that saves seconds a kill.

Each line on stdin is a JSON task {"folder": ..., "log": ..., "settings": {...}}, answered
with the process id. A process appends to its log: `computed N` when it has the vectors of N records, `written N` when a
shard of N records counts, at the end `finished` or `error MESSAGE`.
"""

import json
import os
import signal
import sys
from dataclasses import replace

import torch

from cache.embeddings import EmbeddingStore
from pipeline.commands.run import embed_settings
from pipeline.study import Study
from stages.embed import Embedder, EmbedPaths


def embed(task: dict) -> None:
    os.chdir(task["folder"])
    log = os.open(task["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def say(line: str) -> None:
        os.write(log, f"{line}\n".encode())

    whole_write = EmbeddingStore.write

    def write(store: EmbeddingStore, shard: int, content: object) -> None:
        whole_write(store, shard, content)
        say(f"written {len(content.embedding)}")

    EmbeddingStore.write = write
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
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            embed(json.loads(line))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
