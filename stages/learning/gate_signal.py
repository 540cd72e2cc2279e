"""What a gate sees of the signal: a summary of its leads, or EnECG's lead II."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cache.signals import LEADS, N_SAMPLES, open_signals
from cache.storage.locations import Location
from stages.heads import EnsembleHeads
from stages.heads.gate.inputs import parse_sources, signal_summary
from stages.readers.at_500_hz import read_at_500_hz

GATE_LEADS = ("II",)
"""What a gate that reads the signal sees where nothing else is asked for: lead II, as EnECG's does."""


def gate_signal(signals_mv: np.ndarray, leads: Sequence[str]) -> np.ndarray:
    """Return the summary of each of the gate's leads, float32 [n, leads, values], of mV [n, 12, time] at 500 Hz.

    `EnsembleHeads` takes it for what it would have made of the leads themselves, which need 80 times the memory.
    """
    chosen = np.ascontiguousarray(signals_mv[:, [LEADS.index(lead) for lead in leads]], dtype=np.float32)
    return signal_summary(chosen).reshape(len(chosen), len(leads), -1)


def leads_of(heads: EnsembleHeads) -> tuple[str, ...]:
    """Return the leads that the gate of a fit reads."""
    return tuple(heads.provenance_.get("gate_leads", GATE_LEADS))


def reads_signal(heads: EnsembleHeads) -> bool:
    """Whether the gate of these heads reads the signal."""
    return "signal" in parse_sources(heads.gate_input)


def read_gate_signal(heads: EnsembleHeads, signals_path: Location, leads: Sequence[str]) -> np.ndarray | None:
    """Read what the gate sees of the signals, shard by shard; None where it sees nothing of them."""
    if not reads_signal(heads):
        return None
    store = open_signals(signals_path)
    return np.concatenate([gate_signal(read_at_500_hz(store, store.rows_of(k)), leads) for k in range(store.n_shards)])


def read_enecg_lead(signals_path: Location) -> np.ndarray:
    """Read lead II as EnECG's gate sees it, float32 [n, 5000].

    Missing samples are 0, then ONE z-score over all leads and time of a record (population standard deviation), as the
    official data loader does it; a record without any variation is 0.
    """
    store = open_signals(signals_path)
    lead = np.empty((len(store), N_SAMPLES), np.float32)
    for shard in range(store.n_shards):
        rows = store.rows_of(shard)
        lead[rows] = enecg_lead(read_at_500_hz(store, rows))
    return lead


def enecg_lead(signals_mv: np.ndarray) -> np.ndarray:
    """EnECG's global z-score of [n, 12, time], lead II of it, [n, time]."""
    x = np.nan_to_num(signals_mv.astype(np.float64), posinf=0.0, neginf=0.0)
    mean, sd = x.mean(axis=(1, 2)), x.std(axis=(1, 2))
    lead = x[:, LEADS.index("II")] - mean[:, None]
    return np.divide(lead, sd[:, None], out=np.zeros_like(lead), where=sd[:, None] > 0)
