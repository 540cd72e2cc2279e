"""A saved fit, and what it needs besides features to predict. What `fit-heads`, `evaluate` and `predict` share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cache.errors import FingerprintError
from cache.places import Place
from cache.signals import LEADS, N_SAMPLES, open_signals
from stages.features import Data
from stages.heads import EnsembleHeads
from stages.heads.gate_input import parse_sources

GATE_LEADS = ("II",)
"""What a gate that reads the signal sees: lead II, as EnECG's does."""


ENECG_FOLDER = "enecg"
"""Of the enecg preset, inside the folder of the fit."""


def gate_leads(signals_mv: np.ndarray) -> np.ndarray:
    """Choose the gate's leads out of [n, 12, time]; missing stays NaN."""
    return signals_mv[:, [LEADS.index(lead) for lead in GATE_LEADS]]


def reads_signal(heads: EnsembleHeads) -> bool:
    """Whether the gate of these heads reads the signal."""
    return "signal" in parse_sources(heads.gate_input)


def read_gate_signal(heads: EnsembleHeads, signals_path: Place) -> np.ndarray | None:
    """Read what the gate sees of the signals, float32 [n, leads, 5000] in mV; None where it sees nothing of them."""
    if not reads_signal(heads):
        return None
    store = open_signals(signals_path)
    signal = np.empty((len(store), len(GATE_LEADS), N_SAMPLES), np.float32)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        signal[rows] = gate_leads(store.read_mv(rows))
    return signal


def read_enecg_lead(signals_path: Place) -> np.ndarray:
    """Read lead II as EnECG's gate sees it, float32 [n, 5000].

    Missing samples are 0, then ONE z-score over all leads and time of a record (population standard deviation), as the
    official data loader does it; a record without any variation is 0.
    """
    store = open_signals(signals_path)
    lead = np.empty((len(store), N_SAMPLES), np.float32)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        lead[rows] = enecg_lead(store.read_mv(rows))
    return lead


def enecg_lead(signals_mv: np.ndarray) -> np.ndarray:
    """EnECG's global z-score of [n, 12, time], lead II of it, [n, time]."""
    x = np.nan_to_num(signals_mv.astype(np.float64), posinf=0.0, neginf=0.0)
    mean, sd = x.mean(axis=(1, 2)), x.std(axis=(1, 2))
    lead = x[:, LEADS.index("II")] - mean[:, None]
    return np.divide(lead, sd[:, None], out=np.zeros_like(lead), where=sd[:, None] > 0)


def load_heads(folder: Path, data: Data) -> EnsembleHeads:
    """Load a fit for the embeddings it was made on.

    Raises
    ------
    FingerprintError
        Naming the expert whose store is not the one that the heads were fitted on.
    """
    heads = EnsembleHeads.load(folder)
    for name, digest in heads.provenance_["fingerprints"].items():
        now = data.fingerprints.get(name)
        if now is None:
            raise FingerprintError(f"{folder}: was fitted on expert '{name}', whose embeddings are not given")
        if now != digest:
            raise FingerprintError(
                f"{folder}: was fitted on other embeddings of '{name}' ({digest[:12]}, now {now[:12]}); "
                "run `ensemble fit-heads` again"
            )
    return heads
