"""Whose labels have trained what: keyed digests of patients, and the records of a table that they name.

Lives here: the digests, and the attribute `labelled_training` of an embedding store (docs/store-format.md). Not here:
who trained what (`stages.experts.versions`, `stages.training.versions`), keyed ids of patients (`stages.readers`).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from cache.errors import StoreError
from cache.record_columns import Texts

LABELLED_TRAINING = "labelled_training"
"""Attribute of a store whose expert has learnt labels: a list of entries as `training_entry` makes them."""
HASHED = "h-"
"""How ids begin that ingest has hashed; whose they are, a list of plain patients cannot tell."""

PEOPLE_AT_ONCE = 65_536


@dataclass(frozen=True)
class People:
    """Whom each record [n] is of: a patient's name means one person within a source only.

    Examples
    --------
    >>> people = People(Texts.of(["a", "a", "b"]), Texts.of(["1", "1", "1"]))
    >>> [part.shape for part in people.different()[0].frames()]
    [(2, 2)]
    """

    source: Texts
    patient: Texts

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: np.ndarray) -> Self:
        """Return those of some records, given by an index or a mask."""
        return type(self)(self.source.take(rows), self.patient.take(rows))

    def different(self) -> tuple[Self, np.ndarray]:
        """Return each person once, and each record's place [n] among them."""
        n_names = len(self.patient.names) + 1
        keys = (self.source.codes + np.int64(1)) * n_names + (self.patient.codes + 1)
        keys, place = np.unique(keys, return_inverse=True)
        source, patient = (keys // n_names - 1).astype(np.int32), (keys % n_names - 1).astype(np.int32)
        return type(self)(Texts(source, self.source.names), Texts(patient, self.patient.names)), place

    def frames(self) -> Iterator[pd.DataFrame]:
        """Spell the names, some rows at a time, in the columns that records.parquet has."""
        for start in range(0, len(self), PEOPLE_AT_ONCE):
            part = self.take(np.arange(start, min(start + PEOPLE_AT_ONCE, len(self))))
            source, patient = (column.spelt(column.codes) for column in (part.source, part.patient))
            yield pd.DataFrame({"source": source, "patient_id": patient})


def digests_by_record(records: pd.DataFrame, key: bytes = b"") -> np.ndarray:
    """Return a digest of each record's patient, uint64 [n], keyed where a key is given."""
    names = [f"{source}\t{patient}" for source, patient in zip(records["source"], records["patient_id"], strict=True)]
    known = {name: hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in set(names)}
    return np.frombuffer(b"".join(known[name] for name in names), dtype="<u8")


def patient_digests(records: pd.DataFrame | People, key: bytes = b"") -> np.ndarray:
    """Return one digest a patient, uint64 ascending, keyed where a key is given; names of patients are not kept."""
    if isinstance(records, pd.DataFrame):
        return np.unique(digests_by_record(records[["source", "patient_id"]].drop_duplicates(), key))
    found = [digests_by_record(part, key) for part in records.different()[0].frames()]
    return np.unique(np.concatenate([np.zeros(0, "<u8"), *found]))


def training_entry(sources: Sequence[str], digests: np.ndarray | None = None, key: bytes = b"") -> dict[str, Any]:
    """Describe a labelled training, ready for JSON.

    Parameters
    ----------
    sources
        Collections whose labels it learnt.
    digests
        `patient_digests` of the patients; None: all of these collections.

    Examples
    --------
    >>> training_entry(["ptbxl"])
    {'sources': ['ptbxl']}
    """
    entry: dict[str, Any] = {"sources": sorted(sources)}
    if digests is not None:
        entry["key"] = key.decode()
        entry["patients"] = base64.b64encode(np.sort(digests).astype("<u8").tobytes()).decode()
    return entry


def patients_taught(attributes: Mapping[str, Any]) -> int:
    """Return how many patients' labels have trained the expert of a store, as far as its entries list them.

    Of several entries, which may list the same patients under other keys, the longest list counts.

    Raises
    ------
    StoreError
        An attribute that cannot be read.

    Examples
    --------
    >>> patients_taught({"labelled_training": [training_entry(["ptbxl"], np.array([3, 5], "u8"))]})
    2
    """
    return max((len(_listed(entry)) for entry in attributes.get(LABELLED_TRAINING, ())), default=0)


def records_seen(attributes: Mapping[str, Any], records: pd.DataFrame) -> np.ndarray:
    """Mark the records whose patients' labels have trained the expert of a store, bool [n].

    An id that ingest has hashed counts as seen where its collection was learnt from: nobody can tell.

    Raises
    ------
    StoreError
        An attribute that cannot be read.
    """
    seen = np.zeros(len(records), bool)
    for entry in attributes.get(LABELLED_TRAINING, ()):
        try:
            of_source = records["source"].isin(entry["sources"]).to_numpy()
            if "patients" not in entry:
                seen |= of_source
                continue
            key = str(entry["key"]).encode()
        except (KeyError, TypeError) as error:
            raise _unreadable(error) from error
        listed = _listed(entry)
        hashed = records["patient_id"].astype(str).str.startswith(HASHED).to_numpy()
        plain_key = bool(key)  # a list of this study's own ids, hashed or not, has no key
        seen |= np.isin(digests_by_record(records, key), listed) | (of_source & hashed & plain_key)
    return seen


def _listed(entry: Mapping[str, Any]) -> np.ndarray:
    """Return the digests that an entry lists; none where it is whole collections."""
    try:
        return np.frombuffer(base64.b64decode(entry.get("patients", ""), validate=True), "<u8")
    except (AttributeError, TypeError, ValueError) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> StoreError:
    return StoreError(
        f"attribute {LABELLED_TRAINING}: cannot be read ({type(error).__name__}: {error}); see docs/store-format.md"
    )
