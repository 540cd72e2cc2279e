"""Damaged files: `verify` finds each, nothing reads it as data, `repair` touches nothing else."""

import random
import shutil
from pathlib import Path

import numpy as np

from cache.embeddings import open_embeddings
from cache.errors import EnsembleError
from cache.signals import open_signals
from cache.upkeep.checks import embedding_faults, repair_embeddings, repair_signals, signal_faults
from tests.integration.faults import FULL, STORE

N_DAMAGES = 1000 if FULL else 40


def damage(file: Path, rng: random.Random) -> str:
    """Do one random thing to a file; says what, or nothing where it left the bytes as they were."""
    content = file.read_bytes()
    kind = rng.choice(["flip", "flip", "flip", "cut", "zeros", "lost"])
    if kind == "lost":
        file.unlink()
        return kind
    if kind == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
        return kind
    changed = bytearray(content)
    at = rng.randrange(len(content))
    if kind == "flip":
        changed[at] ^= 1 << rng.randrange(8)
    else:
        changed[at : at + 512] = bytes(len(changed[at : at + 512]))
    file.write_bytes(changed)
    return kind if changed != content else ""


def reads_wrongly(folder: Path, right: dict[str, np.ndarray]) -> bool:
    """Whether any way of reading gives other numbers than the right ones without an error."""
    for name, values in right.items():
        try:
            if name == "signals":
                found = open_signals(folder / "signals.zarr").read_uv(slice(None))
            else:
                store = open_embeddings(folder / STORE)
                store.require_complete()
                found = store.read(name, slice(None))
        except EnsembleError:
            continue
        if found.tobytes() != values.tobytes():
            return True
    return False


def test_random_damage_is_found_and_repaired(cohort, tmp_path, make_cohort):
    rng, study = random.Random(1), tmp_path
    make_cohort(study, 32)  # signals of its own: reading those of 208 records a thousand times takes too long
    shutil.copytree(cohort / "embeddings", study / "embeddings")
    files = {p: p.read_bytes() for s in (study / STORE, study / "signals.zarr") for p in s.rglob("*") if p.is_file()}
    store = open_embeddings(study / STORE)
    right = {name: store.read(name, slice(None)) for name in ("layers", "embedding")}
    right["signals"] = open_signals(study / "signals.zarr").read_uv(slice(None))
    kinds: dict[str, int] = {}
    for _ in range(N_DAMAGES):
        file = rng.choice([f for f in files if f.name == "zarr.json"] if rng.random() < 0.3 else list(files))
        kind = damage(file, rng)
        of_signals = "signals.zarr" in str(file)
        path = study / "signals.zarr" if of_signals else study / STORE
        find, repair = (signal_faults, repair_signals) if of_signals else (embedding_faults, repair_embeddings)
        found = list(find(path))
        assert bool(found) == bool(kind), (file, kind, found)
        at_hand = bool(found) and not all(fault.missing for fault in found)
        mine = {name: values for name, values in right.items() if (name == "signals") == of_signals}
        assert not reads_wrongly(study, mine), (file, kind)
        assert bool(list(repair(path))) == at_hand, (file, kind)
        assert all(fault.missing for fault in find(path)), (file, kind)
        changed = [f for f, content in files.items() if not f.exists() or f.read_bytes() != content]
        assert len(changed) <= (0 if file.name == "zarr.json" else 4), (file, kind, changed)
        for f in changed:
            f.write_bytes(files[f])
        kinds[kind or "as it was"] = kinds.get(kind or "as it was", 0) + 1
    print(f"{N_DAMAGES} damages found and repaired: {dict(sorted(kinds.items()))}")
