"""Running `embed` on this machine, in one process or several. Shards are claimed, so workers never meet."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cache.errors import StoreError
from pipeline.compute.devices import device_of, n_gpus
from pipeline.compute.processes import Count, share
from pipeline.progress import counting
from stages.embed import Embedder, EmbedPaths, EmbedSettings, EmbedSummary
from stages.settings import usable_cores


def worker_count(wanted: int | str, device: str, threads: int) -> int:
    """Turn `auto` into one process a GPU, or as many as the cores hold on the CPU."""
    if isinstance(wanted, int):
        return wanted
    return n_gpus(device) or max(1, usable_cores() // threads)


def run_embed(settings: EmbedSettings, paths: EmbedPaths, *, workers: int) -> EmbedSummary:
    """Bring one expert's store up to date, on this machine."""
    embedder = Embedder(settings, paths)
    # What only makes the store for others needs no GPU.
    planner = embedder if workers == 1 else Embedder(replace(settings, device="cpu"), paths)
    pending, plan = planner.prepare_store(), planner.plan()
    if workers > 1 and len(pending) > 1:
        summary = _in_processes(planner, settings, plan, min(workers, len(pending)))
    else:
        with counting(f"embed {settings.expert}", plan.n_resumed, plan.n_records) as count:
            summary = embedder.run(progress=count)
    return embedder.finish(summary)


@dataclass(frozen=True)
class EmbedWork:
    """What one process does: embed what is pending and not claimed."""

    settings: EmbedSettings
    paths: EmbedPaths

    def __call__(self, count: Count) -> EmbedSummary:
        """Return what this process has done."""
        return Embedder(self.settings, self.paths).run(progress=count)


def _in_processes(embedder: Embedder, settings: EmbedSettings, summary: EmbedSummary, workers: int) -> EmbedSummary:
    placed = [replace(settings, device=device_of(settings.device, number)) for number in range(workers)]
    summary.n_embedded = 0
    with counting(f"embed {summary.expert}, {workers} workers", summary.n_resumed, summary.n_records) as count:
        exit_codes = share([EmbedWork(each, embedder.paths) for each in placed], count, summary.add, "shard")
    _check_all_done(embedder, exit_codes)
    return summary


def _check_all_done(embedder: Embedder, exit_codes: list[int | None]) -> None:
    pending = embedder.prepare_store()
    if pending:
        raise StoreError(
            f"{embedder.paths.store}: every worker died (exit codes {exit_codes}), {len(pending)} shards are left; "
            "run again, with fewer --workers or a smaller --batch-size if memory was short"
        )
