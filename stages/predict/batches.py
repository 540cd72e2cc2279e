"""Records on their way through a prediction, some at a time: where they come from, and their signals or vectors.

Lives here: reading files and ingested studies into batches. Not here: which files there are (inputs.py), what the fit
says of a batch (answering.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cache.embeddings import EmbeddingStore, open_embeddings
from cache.errors import FingerprintError, InputError, MissingFileError, StoreError
from cache.record_rows import RecordRows
from cache.signals import LEADS, RATE_HZ, SignalStore, open_signals
from cache.storage.locations import store_exists
from stages.experts.run import Signal, SignalGroup, grouped
from stages.heads import EnsembleHeads
from stages.heads.inputs.expert_features import parse_mix
from stages.heads.inputs.lazy_rows import all_missing
from stages.learning.data import expert_identity, layer_parts
from stages.learning.gate_signal import gate_signal, leads_of, reads_signal
from stages.learning.saved_fit import otherwise_made
from stages.predict.inputs import InputRow
from stages.predict.settings import StudyStores
from stages.readers.at_500_hz import all_at_500_hz
from stages.readers.files import Recorded, quality_warnings, read_ecg
from stages.readers.rows import RowOptions

Features = dict[str, np.ndarray]
NO_SIGNAL = np.empty((len(LEADS), 0), dtype=np.float32)


@dataclass
class RecordBatch:
    """Some records, read.

    Attributes
    ----------
    names, patients
        Of each record; None where no patient is known.
    warnings
        Of each record: what a reader of its predictions should know of the signal.
    unreadable
        Position -> why a record cannot be read; nothing is predicted of it.
    groups
        Signals of the others, by rate and length; none where no expert has to run.
    signal
        What the gate sees of the signals [n, leads, values]; None where it sees nothing of them.
    cached
        Expert -> vectors that a store has of the records.
    """

    names: list[str]
    patients: list[str | None]
    warnings: list[list[str]]
    unreadable: dict[int, str] = field(default_factory=dict)
    groups: list[SignalGroup] = field(default_factory=list)
    signal: np.ndarray | None = None
    cached: dict[str, Features] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


class RecordSource(Protocol):
    """Where batches come from.

    Attributes
    ----------
    cached_experts
        Those whose vectors lie in stores, so that they need not run.
    digests
        What of the source changes the numbers besides its list of records.
    notes
        What a person should know of all its records.
    """

    cached_experts: frozenset[str]
    digests: dict[str, str]
    notes: list[str]

    def __len__(self) -> int: ...

    def read(self, rows: slice) -> RecordBatch:
        """Read contiguous records; one that cannot be read has a reason in the batch."""
        ...


def row_options(heads: EnsembleHeads) -> RowOptions:
    """Return how the rows were made that a fit learnt from."""
    kept = heads.provenance_.get("rows") or {}
    return RowOptions.from_json({**kept, "pace_spikes": False})


class InputRows(Protocol):
    """A list of files, of which a part is read at a time."""

    def __len__(self) -> int: ...

    def read(self, rows: slice) -> Sequence[InputRow]:
        """Return contiguous rows."""
        ...


class ListedFiles:
    """Files of any format."""

    cached_experts: frozenset[str] = frozenset()
    digests: dict[str, str] = {}  # noqa: RUF012 - of none

    def __init__(self, rows: InputRows, heads: EnsembleHeads, options: RowOptions, *, follow_links: bool) -> None:
        self._rows, self._heads, self._options, self._follow_links = rows, heads, options, follow_links
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: slice) -> RecordBatch:
        """Read the files of contiguous rows."""
        listed = self._rows.read(rows)
        batch = RecordBatch([row.record_id for row in listed], [row.patient_id for row in listed], [[] for _ in listed])
        recorded: dict[int, Recorded] = {}
        for position, row in enumerate(listed):
            try:
                recorded[position] = self._read(row)
                batch.warnings[position] += recorded[position].warnings
            except (InputError, MissingFileError) as error:
                batch.unreadable[position] = str(error)
            except OSError as error:
                batch.unreadable[position] = f"{row.path}: cannot be read ({error.strerror})"
        add_signals(batch, recorded, self._heads)
        return batch

    def _read(self, row: InputRow) -> Recorded:
        if not row.path:
            raise InputError(f"record '{row.record_id}': the manifest gives it no path")
        return read_ecg(row.path, self._options, follow_links=self._follow_links)


def add_signals(batch: RecordBatch, recorded: Mapping[int, Recorded], heads: EnsembleHeads) -> None:
    """Put the signals of records, by position, into a batch."""
    positions = np.array(list(recorded), dtype=np.int64)
    for group in grouped([Signal(one.signals_mv, one.rate_hz) for one in recorded.values()]):
        batch.groups.append(group._replace(positions=positions[group.positions]))
    if reads_signal(heads):
        batch.signal = seen_by_gate(batch, heads)


def seen_by_gate(batch: RecordBatch, heads: EnsembleHeads) -> np.ndarray:
    """Return what the gate sees of a batch's signals; of a record without one, that of missing samples."""
    signals = [(NO_SIGNAL, float(RATE_HZ))] * len(batch)
    for group in batch.groups:
        for position, record_mv in zip(group.positions.tolist(), group.signals_mv, strict=True):
            signals[position] = (record_mv, group.rate_hz)
    return gate_signal(all_at_500_hz(signals), leads_of(heads))


class StudyRecords:
    """The records of an ingested study, with the vectors that are cached of the fit's experts.

    Raises
    ------
    StoreError, MissingFileError
        The stores do not belong together, or some are not there.
    """

    NEEDED = ("record_id", "patient_id", "sampling_rate_hz", "n_samples", "status", "reason")
    OPTIONAL = (
        "nan_fraction",
        "flat_leads",
        "missing_leads",
        "clipped_fraction",
        "derived_leads",
        "limb_swap",
        "pace_spikes",
        "notes",
    )

    def __init__(self, stores: StudyStores, heads: EnsembleHeads, computed: Sequence[str]) -> None:
        self._heads, self._rows = heads, RecordRows(stores.records, self.NEEDED, self.OPTIONAL)
        self._only_embedding = parse_mix(heads.layer_mix) == ("embedding",)
        rows_digest = self._rows.digest()
        self.digests = {"records": rows_digest}
        self.notes = otherwise_made(self._rows.row_options, heads)
        self._signals: SignalStore | None = None
        signals_digest = None
        if store_exists(stores.signals):
            self._signals = open_signals(stores.signals)
            signals_digest = self._signals.content_digest()
            self.digests["signals"] = signals_digest
            if len(self._signals) != len(self._rows):
                raise StoreError(
                    f"{stores.records} has {len(self._rows)} records, {stores.signals} has {len(self._signals)}; "
                    "run `ensemble ingest` again"
                )
        wanted = heads.provenance_["identities"]
        self._cached = {
            name: store
            for name in heads.experts_
            if (store := _usable(stores.embeddings.get(name), wanted.get(name), rows_digest, signals_digest))
        }
        self.cached_experts = frozenset(self._cached)
        self._needs_signals = reads_signal(heads) or bool(set(computed) - self.cached_experts)
        if self._needs_signals and self._signals is None:
            raise MissingFileError(
                f"{stores.signals} does not exist, and not all experts of the fit have vectors of these records; run "
                "`ensemble ingest` there"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: slice) -> RecordBatch:
        """Read contiguous records."""
        facts = self._rows.take(rows)
        n = len(facts["record_id"])
        batch = RecordBatch(facts["record_id"], facts["patient_id"], [[] for _ in range(n)])
        for position in range(n):
            if facts["status"][position] == "ok":
                batch.warnings[position] += _warnings({name: column[position] for name, column in facts.items()})
            else:
                batch.unreadable[position] = f"{facts['record_id'][position]}: {facts['reason'][position]}"
        if self._needs_signals and self._signals is not None:
            readable = np.array([status == "ok" for status in facts["status"]])
            batch.groups = [SignalGroup(*group) for group in self._signals.read_groups(rows, readable)]
        if reads_signal(self._heads):
            batch.signal = seen_by_gate(batch, self._heads)
        for name, store in self._cached.items():
            batch.cached[name] = self._vectors(store, rows)
            lost = np.flatnonzero(all_missing(batch.cached[name]["embedding"]))
            for position in set(lost.tolist()) - batch.unreadable.keys():
                batch.warnings[position].append(f"expert {name} gave nothing: its store has no vector of this record")
        return batch

    def _vectors(self, store: EmbeddingStore, rows: slice) -> Features:
        views = {name: store.read_view(name, rows) for name in store.views}
        embedding = store.read_embedding(rows)
        if self._only_embedding:
            return {"embedding": embedding}
        return layer_parts(embedding, store.layer_names, store.layer_dims, lambda: store.read_layers(rows)) | views


def _usable(location: Any, identity: str | None, rows_digest: str, signals_digest: str | None) -> EmbeddingStore | None:
    """Return a store that holds what the fit's expert gives for these very records, whole; None where there is none."""
    if location is None or identity is None or not store_exists(location):
        return None
    try:
        store = open_embeddings(location)
        store.require_records(rows_digest)
        store.require_complete()
    except (StoreError, FingerprintError):
        return None
    made_for = store.attributes.get("signals_digest") or signals_digest  # what other tools made does not say it
    other_signals = signals_digest is not None and made_for != signals_digest
    return None if other_signals or expert_identity(store.attributes) != identity else store


def _warnings(facts: dict[str, Any]) -> list[str]:
    """Say what is wrong with a record that a study has, as is said of a file."""
    rate_hz, n_samples = facts["sampling_rate_hz"], facts["n_samples"]
    seconds = n_samples / rate_hz if rate_hz and n_samples else 0.0
    known = {"nan_fraction": 0.0, "clipped_fraction": 0.0, "pace_spikes": 0}
    return quality_warnings({**facts, **{name: facts[name] or least for name, least in known.items()}}, seconds)
