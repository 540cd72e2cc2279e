"""signals.zarr: every ECG as int16 microvolts, 12 standard leads, 500 Hz, 10 s. Missing stays visible as NaN."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from cache.errors import StoreError
from cache.files import link_or_copy
from cache.fingerprint import DIGEST_BYTES, ROW_DIGESTS, row_digests
from cache.storage.locations import Place, folder_of, name_within, place
from cache.storage.objects import ObjectPath
from cache.storage.writing import write_durably
from cache.zarr_io.groups import ZARR_ERRORS, add_array, create_group, open_group, shard_file, write_shard
from cache.zarr_io.packed_shards import Packed, codec_of, pack_chunks, packer_of, shard_pieces

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
RATE_HZ = 500
N_SAMPLES = 5000
MISSING = -32768
LIMIT_UV = 32767
SCHEMA_VERSION = 1
SHARD_RECORDS = 512
CHUNK_RECORDS = 16
DIGESTS_AT_ONCE = 128 * SHARD_RECORDS
"""Rows whose digests are read at once: memory stays the same for any cohort."""
# Takes real ECGs to 0.46; zstd would save another sixth, but packs and unpacks twice as long (docs/decisions.md).
_CODEC = BloscCodec(typesize=2, cname="lz4", clevel=5, shuffle="shuffle")
ROW_DIGEST, FIRST_ROW_DIGEST = "xxh3_128", "blake2b_128"
"""How rows are digested; stores that do not say have the first way."""
_ATTRIBUTES = {"schema_version": SCHEMA_VERSION, "leads": list(LEADS), "sampling_rate_hz": RATE_HZ, "unit": "uV"}


def to_microvolts(signals_mv: np.ndarray) -> np.ndarray:
    """Round mV to int16 microvolts; NaN becomes -32768, values beyond +-32.767 mV are held at that limit."""
    scaled = np.rint(signals_mv * 1000.0)
    clipped = np.clip(scaled, -LIMIT_UV, LIMIT_UV)
    return np.where(np.isfinite(signals_mv), clipped, MISSING).astype(np.int16)


def to_millivolts(signals_uv: np.ndarray) -> np.ndarray:
    """Turn int16 microvolts into float32 mV; -32768 becomes NaN."""
    signals_mv = signals_uv.astype(np.float32) / np.float32(1000.0)
    signals_mv[signals_uv == MISSING] = np.nan
    return signals_mv


@dataclass(frozen=True)
class PackedRows:
    """Some rows of a shard, ready to be written."""

    chunks: list[Packed]
    digests: np.ndarray


class SignalStore:
    """The signals of one records table, row for row.

    Attributes
    ----------
    signals
        zarr array int16 [record, lead, time], 1 LSB = 1 microvolt.
    valid
        zarr array int32 [record]: samples before padding; 0 where the record could not be read.
    digest
        zarr array uint8 [record, 16]: digest of each row, written after the row; all zero = not written yet.
    row_digest
        How rows are digested, one of `cache.fingerprint.ROW_DIGESTS`.
    codec
        What packs the signals; None where another tool laid them out, which is read and never written.
    """

    def __init__(self, path: Place, group: zarr.Group) -> None:
        self.path = path
        self.group = group
        try:
            self.signals, self.valid, self.digest = (_array(group, n) for n in ("signals", "valid", "digest"))
            self.shard_records = int(self.valid.chunks[0])
        except KeyError as error:
            raise StoreError(f"{path}: has no array {error}; remove it and run `ensemble ingest`") from error
        if self.signals.shape[1:] != (len(LEADS), N_SAMPLES) or self.signals.dtype != np.int16:
            raise StoreError(
                f"{path}: signals are {self.signals.dtype} {self.signals.shape}; expected int16 (n, 12, 5000)"
            )
        self.row_digest = str(group.attrs.get("row_digest", FIRST_ROW_DIGEST))
        if self.row_digest not in ROW_DIGESTS:
            known = ", ".join(ROW_DIGESTS)
            raise StoreError(f"{path}: row_digest is {self.row_digest[:40]!r}; this version knows {known}: update it")
        self.codec = codec_of(self.signals)
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return int(self.signals.shape[0])

    @property
    def chunk_records(self) -> int:
        """Rows of a chunk: what is packed together."""
        return int(self.signals.chunks[0])

    @property
    def n_shards(self) -> int:
        """Number of shards; the last may be partly filled."""
        return -(-len(self) // self.shard_records)

    def rows_of(self, shard: int) -> slice:
        """Return the rows that a shard holds."""
        start = shard * self.shard_records
        return slice(start, min(start + self.shard_records, len(self)))

    def written(self, shard: int) -> bool:
        """Whether every row of a shard has been written."""
        return shard_file(self.path, self.digest, shard).exists() and bool(
            self._digests(self.rows_of(shard)).any(1).all()
        )

    def write_shard(self, shard: int, signals_uv: np.ndarray, valid: np.ndarray) -> None:
        """Write one whole shard: int16 [rows, 12, 5000] and its valid lengths; the digest goes last: then it counts."""
        rows = self.rows_of(shard)
        if signals_uv.shape != (rows.stop - rows.start, len(LEADS), N_SAMPLES):
            raise StoreError(
                f"{self.path}: shard {shard} takes {rows.stop - rows.start} records, got {signals_uv.shape}"
            )
        self.write_packed(shard, [self.pack(signals_uv)], valid)

    def pack(self, signals_uv: np.ndarray, digests: np.ndarray | None = None) -> PackedRows:
        """Digest and encode rows of one shard that begin at a chunk's border; writes nothing, and any thread may do it.

        Parameters
        ----------
        signals_uv
            int16 [rows, 12, 5000]. May be overwritten afterwards.
        digests
            Of `digests_of`, if they are known.
        """
        if self.codec is None:
            raise StoreError(
                f"{self.path} was laid out by another tool and is not written into; remove it, or name another"
            )
        rows = np.ascontiguousarray(signals_uv, dtype=np.int16)
        chunks = pack_chunks(rows, chunk_rows=self.chunk_records, fill=MISSING, packer=packer_of(self.codec))
        return PackedRows(chunks, self.digests_of(rows) if digests is None else digests)

    def write_packed(self, shard: int, parts: Sequence[PackedRows], valid: np.ndarray) -> None:
        """Write one whole shard from its rows, packed part by part; all parts but the last are whole chunks."""
        folder_of(self.path)
        chunks = (chunk for part in parts for chunk in part.chunks)
        pieces = shard_pieces(chunks, self.shard_records // self.chunk_records)
        write_durably(shard_file(self.path, self.signals, shard), self.path / self.signals.basename, pieces)
        write_shard(self.path, self.valid, shard, self.shard_records, valid.astype(np.int32))
        digests = np.concatenate([part.digests for part in parts])
        write_shard(self.path, self.digest, shard, self.shard_records, digests)

    def digests_of(self, signals_uv: np.ndarray) -> np.ndarray:
        """Return the digests that rows have in this store, uint8 [rows, 16]."""
        return row_digests(signals_uv, self.row_digest)

    def drop(self, shard: int) -> None:
        """Remove a shard, its digests first, so that it is read from the records again."""
        for array in (self.digest, self.valid, self.signals):
            shard_file(self.path, array, shard).unlink(missing_ok=True)

    def all_missing(self, digests: np.ndarray) -> bool:
        """Whether these rows' digests are all that of a record without a single sample."""
        return bool((digests == self.digests_of(np.full((1, *self.signals.shape[1:]), MISSING, dtype=np.int16))).all())

    def _require_files(self, rows: slice) -> None:
        """Refuse a shard whose file is lost: it would read as missing samples, as one of unreadable records does."""
        start, stop, _ = rows.indices(len(self))
        for shard in range(start // self.shard_records, -(-stop // self.shard_records)):
            if shard in self._seen or shard_file(self.path, self.signals, shard).exists():
                if isinstance(self.path, ObjectPath):  # to ask is a request, for each batch of the shard
                    self._seen.add(shard)
                continue
            digests = self._digests(self.rows_of(shard))
            if digests.any() and not self.all_missing(digests):
                raise ValueError(f"shard {shard} is missing")

    def read_uv(self, rows: slice) -> np.ndarray:
        """Read contiguous rows as int16 microvolts [rows, 12, 5000]."""
        try:
            self._require_files(rows)
            return np.asarray(self.signals[rows])
        except ZARR_ERRORS as error:
            raise StoreError(
                f"{self.path}: records {rows.start}..{rows.stop} are damaged ({error}); run "
                "`ensemble cache repair`, then `ensemble ingest`"
            ) from error

    def read_mv(self, rows: slice) -> np.ndarray:
        """Read contiguous rows as float32 mV [rows, 12, 5000]; missing = NaN."""
        return to_millivolts(self.read_uv(rows))

    def _digests(self, rows: slice) -> np.ndarray:
        try:
            return np.asarray(self.digest[rows])
        except ZARR_ERRORS as error:
            raise StoreError(
                f"{self.path}: the row digests are damaged ({error}); run `ensemble ingest` again"
            ) from error

    def content_digest(self, n_records: int | None = None) -> str:
        """Return the sha256 of the first `n_records` rows' digests; refuses a store that is not complete.

        A store that was appended to keeps the digest of its first rows, which is how embeddings of them stay valid.
        """
        n, step = len(self) if n_records is None else n_records, DIGESTS_AT_ONCE
        digest, n_absent = hashlib.sha256(), 0
        for start in range(0, n, step):
            rows = self._digests(slice(start, min(start + step, n)))
            n_absent += int((~rows.any(axis=1)).sum())
            digest.update(rows.tobytes())
        if n_absent:
            raise StoreError(f"{self.path}: {n_absent} records are not written yet; run `ensemble ingest`")
        return digest.hexdigest()


def _array(group: zarr.Group, name: str) -> zarr.Array:
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise KeyError(name)
    return found


def create_signals(path: str | Path, n_records: int, shard_records: int = SHARD_RECORDS) -> SignalStore:
    """Make an empty store (replacing one that stands there)."""
    path = folder_of(path)
    attributes = {**_ATTRIBUTES, "row_digest": ROW_DIGEST}
    create_group(path, attributes, lambda group, _: _add_arrays(group, n_records, shard_records, _CODEC))
    return open_signals(path, mode="r+")


def _add_arrays(group: zarr.Group, n_records: int, shard: int, codec: BloscCodec) -> None:
    shape, chunks = (n_records, len(LEADS), N_SAMPLES), (CHUNK_RECORDS, len(LEADS), N_SAMPLES)
    add_array(group, "signals", shape, chunks, shard_rows=shard, dtype="int16", fill_value=MISSING, compressors=codec)
    add_array(group, "valid", (n_records,), (shard,), shard_rows=shard, dtype="int32", fill_value=0)
    digest_shape, digest_chunks = (n_records, DIGEST_BYTES), (shard, DIGEST_BYTES)
    add_array(group, "digest", digest_shape, digest_chunks, shard_rows=shard, dtype="uint8", fill_value=0)


def grow_signals(path: str | Path, n_kept: int, n_records: int) -> SignalStore:
    """Give a store more rows behind its first `n_kept`; all or nothing.

    The shards that hold those stay as they are (linked, not copied). The last of them, if it is not full, has to be
    written again, with its old rows first.

    Raises
    ------
    StoreError
        The first `n_kept` rows are not all written, or another tool laid them out.
    """
    path = folder_of(path)
    store = open_signals(path)
    if store.codec is None or store.signals.chunks[0] != CHUNK_RECORDS:
        raise StoreError(f"{path} was laid out by another tool and cannot grow; ingest without --append")
    codec = store.codec
    store.content_digest(n_kept)
    n_shards = -(-n_kept // store.shard_records)
    arrays = (store.signals, store.valid, store.digest)
    files = [name_within(path, shard_file(path, array, shard)) for shard in range(n_shards) for array in arrays]

    def fill(group: zarr.Group, folder: Path) -> None:
        _add_arrays(group, n_records, store.shard_records, codec)
        for file in files:
            if (path / file).exists():  # there is none of a shard without a single readable record
                link_or_copy(path / file, folder / file)
        os.sync()

    create_group(path, {**_ATTRIBUTES, "row_digest": store.row_digest}, fill)
    return open_signals(path, mode="r+")


def open_signals(path: str | Place = "signals.zarr", mode: str = "r") -> SignalStore:
    """Open signals.zarr, a folder or a URL such as `s3://bucket/signals.zarr`; read-only unless `mode` is "r+"."""
    path = place(path)
    return SignalStore(path, open_group(path, made_by="ensemble ingest", mode=mode))
