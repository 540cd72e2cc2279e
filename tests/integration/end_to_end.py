"""Records of many rates, lengths, lead orders and units as files, what they hold, and what experts make of them.

The golden vectors of tests/golden/end_to_end.json are written again, after an intended change of an expert's numbers
(raise its `version` too), by

    python -m tests.integration.end_to_end ecgfm jepa      # all experts without names
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from cache import open_embeddings, open_records
from cache.errors import InputError
from cache.signals import LEADS
from stages.embed import Embedder, EmbedPaths, EmbedSettings
from stages.experts import Expert, expert_class
from tests.ingesting import ingest
from tests.stages.small_experts import NAMES, new_expert, records

GOLDEN = Path(__file__).parents[1] / "golden" / "end_to_end" / "vectors.json"
KEPT = 6
"""Numbers that are kept of each embedding, evenly spread over it."""
MIMIC = (*LEADS[:4], "aVF", "aVL", *LEADS[6:])
INDEPENDENT = ("I", "II", *LEADS[6:])
ORDERS = {
    "standard": LEADS,
    "mimic": MIMIC,
    "reversed": tuple(reversed(LEADS)),
    "lower case": tuple(lead.lower() for lead in LEADS),
    "eight leads": INDEPENDENT,
}
UNITS = {"mV": 1000.0, "uV": 1.0, "V": 1_000_000.0}
"""Unit -> counts a unit, so that a count is a microvolt in each."""
RATES_HZ = (100, 250, 257, 360, 400, 500, 1000)
SECONDS = (2.5, 5.0, 7.0, 9.0, 10.0, 15.0, 30.0)


class Case(NamedTuple):
    """One record: its rate, length, the order of its leads and their unit."""

    rate_hz: int
    seconds: float
    order: str = "standard"
    unit: str = "mV"

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.rate_hz}_{self.seconds:g}_{self.order}_{self.unit}".replace(" ", "").replace(".", "p")


def _varied(pairs: list[tuple[int, float]]) -> list[Case]:
    forms = itertools.cycle(itertools.product(ORDERS, UNITS))
    return [Case(rate_hz, seconds, *form) for (rate_hz, seconds), form in zip(pairs, forms, strict=False)]


CASES = _varied(
    [*((rate_hz, 10.0) for rate_hz in RATES_HZ), (500, 2.5), (250, 5.0), (500, 7.0), (400, 9.0), (1000, 15.0)]
)
EVERY_CASE = _varied(list(itertools.product(RATES_HZ, SECONDS)))


def signal_of(case: Case) -> np.ndarray:
    """Return what a record holds, float64 mV [12, time] in whole microvolts; leads that its file lacks are NaN."""
    seed = RATES_HZ.index(case.rate_hz) % 3
    signals_mv = records(3, case.seconds, float(case.rate_hz))[seed].copy()
    held = {lead.upper() for lead in ORDERS[case.order]}
    signals_mv[[lead.upper() not in held for lead in LEADS]] = np.nan
    return signals_mv


def write_case(folder: Path, case: Case) -> None:
    """Write a record as a WFDB file of format 16, with its checksums."""
    names = ORDERS[case.order]
    rows = [[lead.upper() for lead in LEADS].index(name.upper()) for name in names]
    counts = np.rint(signal_of(case)[rows] * 1000).astype("<i2").T
    counts.tofile(folder / f"{case.name}.dat")
    lines = [f"{case.name} {len(names)} {case.rate_hz} {len(counts)}"]
    sums = counts.sum(axis=0, dtype=np.int64) % 65536
    for k, name in enumerate(names):
        gain = f"{UNITS[case.unit]:g}".replace("1e+06", "1000000")
        lines.append(f"{case.name}.dat 16 {gain}(0)/{case.unit} 16 0 {counts[0, k]} {sums[k]} 0 {name}")
    (folder / f"{case.name}.hea").write_text("\n".join(lines) + "\n")


class Study(NamedTuple):
    """Stores of some cases."""

    folder: Path
    cases: list[Case]
    """In the order of the rows."""


def ingested(folder: Path, cases: list[Case], seconds: float | None, **options) -> Study:
    """Write and ingest cases."""
    (folder / "files").mkdir()
    for case in cases:
        write_case(folder / "files", case)
    stores = {"records_path": folder / "records.parquet", "signals_path": folder / "signals.zarr"}
    ingest("wfdb", folder / "files", {}, seconds="all" if seconds is None else seconds, **stores, **options)
    by_name = {case.name: case for case in cases}
    ids = open_records(folder / "records.parquet")["record_id"]
    return Study(folder, [by_name[Path(str(record_id)).name] for record_id in ids])


def small_and_saved(name: str, folder: Path) -> tuple[Expert, Path | None]:
    """Build a small expert, and write its weights under their official names."""
    expert = new_expert(name)
    if expert.module is None or not expert.spec.needs_weights:
        return expert, None
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous().clone() for key, value in expert.module.state_dict().items()}, path)
    return expert, path


def embedded(study: Study, name: str, weights: Path | None, **settings) -> tuple[np.ndarray, dict[str, str]]:
    """Embed a study, read its vectors back: [record, dim], and record -> why it has none."""
    store = study.folder / "embeddings" / f"{name}.zarr"
    cls, variant = expert_class(name)
    chosen = {"dtype": "float32", "config": cls.small_config(variant), "weights": weights, **settings}
    paths = EmbedPaths(study.folder / "records.parquet", study.folder / "signals.zarr", store, study.folder / "state")
    embedder = Embedder(EmbedSettings(name, **chosen), paths)
    summary = embedder.finish(embedder.run())
    assert summary.n_resumed or summary.n_without_vector == len(summary.bad)
    assert summary.n_short == sum(case.seconds < 10 for case in study.cases)
    return open_embeddings(store).read_embedding(), summary.bad


def reference(expert: Expert, case: Case, seconds: float | None) -> np.ndarray | None:
    """Prepare and encode a record alone, from float64 at its own rate; None where the expert refuses it."""
    signals_mv = signal_of(case)
    if seconds is not None:
        signals_mv = signals_mv[:, : round(seconds * case.rate_hz)]
    try:
        x = expert.prepare(signals_mv[None], float(case.rate_hz))
    except InputError:
        return None
    with torch.inference_mode():
        return np.asarray(expert.encode(x[0]).embedding.double().mean(0))


def sampled(vectors: np.ndarray) -> list[list[float | None]]:
    """Keep a few numbers of each vector; None for NaN."""
    chosen = vectors[:, np.linspace(0, vectors.shape[1] - 1, min(KEPT, vectors.shape[1])).astype(int)]
    return [[None if np.isnan(value) else float(f"{value:.5g}") for value in row] for row in chosen]


def main() -> None:
    """Write the golden vectors of the experts named on the command line, or of all."""
    parser = argparse.ArgumentParser(description="Write golden vectors from files to stores.")
    parser.add_argument("names", nargs="*", default=NAMES)
    names = parser.parse_args().names
    found = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    found = {name: rows for name, rows in found.items() if name in NAMES}
    with tempfile.TemporaryDirectory() as folder:
        study = ingested(Path(folder), CASES, 10.0)
        for expert in names:
            vectors, _ = embedded(study, expert, small_and_saved(expert, study.folder)[1])
            found[expert] = dict(zip((case.name for case in study.cases), sampled(vectors), strict=True))
    GOLDEN.parent.mkdir(exist_ok=True)
    rows = (f'"{name}": {json.dumps(found[name])}' for name in sorted(found))
    GOLDEN.write_text("{\n" + ",\n".join(rows).replace("], ", "],\n ") + "\n}\n")


if __name__ == "__main__":
    main()
