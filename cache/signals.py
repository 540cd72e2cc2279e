"""signals.zarr: every ECG as int16 microvolts, 12 standard leads, at the rate and of the length that it was recorded.

The time axis is as long as the longest record, in pieces of 5000 samples of which only those are kept that hold some;
`valid` and `rate_hz` say of each record how many samples it has and how many a second. Missing stays visible as NaN.
Stores of the first version hold 500 Hz and ten seconds alone; they are read as what they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from cache.errors import StoreError
from cache.fingerprint import DIGEST_BYTES, ROW_DIGESTS, row_digests
from cache.storage.locations import Location, location_of
from cache.storage.objects import ObjectPath
from cache.storage.writing import Guard, write_durably
from cache.zarr_io.groups import ZARR_ERRORS, add_array, create_group, get_array, open_group, shard_file, write_shard
from cache.zarr_io.packed_shards import Packed, codec_of, packed_pieces, packer_of, shard_pieces, side_by_side

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
RATE_HZ = 500
N_SAMPLES = 5000
"""Ten seconds at 500 Hz, and the length of a piece of the time axis."""
MISSING = -32768
LIMIT_UV = 32767
SCHEMA_VERSION = 2
SHARD_RECORDS = 512
CHUNK_RECORDS = 16
DIGESTS_AT_ONCE = 128 * SHARD_RECORDS  # memory stays the same for any cohort
# Takes real ECGs to 0.46; zstd would save another sixth, but packs and unpacks twice as long (docs/decisions.md).
_CODEC = BloscCodec(typesize=2, cname="lz4", clevel=5, shuffle="shuffle")
ROW_DIGEST, FIRST_ROW_DIGEST = "xxh3_128", "blake2b_128"
"""How rows are digested; stores that do not say have the first way."""
SIGNAL_ATTRIBUTES = {"schema_version": SCHEMA_VERSION, "leads": list(LEADS), "unit": "uV"}


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
    """Some rows of a shard, ready to be written: of each piece of the time axis its chunks, None where it is empty."""

    pieces: list[list[Packed | None]]
    digests: np.ndarray


class SignalStore:
    """The signals of one records table, row for row.

    Attributes
    ----------
    signals
        zarr array int16 [record, lead, time], 1 LSB = 1 microvolt.
    valid
        zarr array int32 [record]: samples that the record has; 0 where it could not be read.
    rate_hz
        zarr array float64 [record]: samples a second; None in a store of the first version, where it is 500.
    digest
        zarr array uint8 [record, 16]: digest of each row, written after the row; all zero = not written yet.
    row_digest
        How rows are digested, one of `cache.fingerprint.ROW_DIGESTS`.
    codec
        What packs the signals; None where another tool laid them out, which is read and never written.
    """

    def __init__(self, path: Location, group: zarr.Group) -> None:
        self.path = path
        self.group = group
        try:
            self.signals, self.valid, self.digest = (get_array(group, n) for n in ("signals", "valid", "digest"))
            self.rate_hz = get_array(group, "rate_hz") if "rate_hz" in group else None
            self.shard_records = int(self.valid.chunks[0])
        except KeyError as error:
            raise StoreError(f"{path}: has no array {error}; remove it and run `ensemble ingest`") from error
        self._check_shape()
        self.row_digest = str(group.attrs.get("row_digest", FIRST_ROW_DIGEST))
        if self.row_digest not in ROW_DIGESTS:
            known = ", ".join(ROW_DIGESTS)
            raise StoreError(f"{path}: row_digest is {self.row_digest[:40]!r}; this version knows {known}: update it")
        self.codec = codec_of(self.signals)
        self._seen: set[int] = set()

    def _check_shape(self) -> None:
        shape, version = self.signals.shape, self.group.attrs.get("schema_version", 1)
        if version not in (1, SCHEMA_VERSION):
            raise StoreError(f"{self.path}: has schema_version {version}; this version reads 1 and 2: update it")
        right = len(shape) == 3 and shape[1] == len(LEADS) and (self.rate_hz is not None or shape[2] == N_SAMPLES)
        if not right or self.signals.dtype != np.int16:
            raise StoreError(f"{self.path}: signals are {self.signals.dtype} {shape}; expected int16 (n, 12, time)")

    def __len__(self) -> int:
        return int(self.signals.shape[0])

    @property
    def n_samples(self) -> int:
        """Length of the time axis: that of the longest record, rounded up to whole pieces."""
        return int(self.signals.shape[2])

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

    def facts(self) -> list[zarr.Array[Any]]:
        """Return the arrays of one value a record: `valid`, `rate_hz` where there is one, `digest` last."""
        return [array for array in (self.valid, self.rate_hz, self.digest) if array is not None]

    def signal_files(self, shard: int) -> list[Location]:
        """Return the files or objects that hold a shard's samples, piece after piece of the time axis."""
        first = shard_file(self.path, self.signals, shard)
        piece = (self.signals.shards or self.signals.chunks)[2]
        return [first, *(first.parent / str(k) for k in range(1, -(-self.n_samples // piece)))]

    def written(self, shard: int) -> bool:
        """Whether every row of a shard has been written."""
        return shard_file(self.path, self.digest, shard).exists() and bool(
            self.row_digests_of(self.rows_of(shard)).any(1).all()
        )

    def write_shard(
        self, shard: int, signals_uv: np.ndarray, valid: np.ndarray, rate_hz: np.ndarray | None = None
    ) -> None:
        """Write one whole shard; the digest goes last: then it counts.

        Parameters
        ----------
        signals_uv
            int16 [rows, 12, time].
        valid, rate_hz
            [rows]: samples that each record has, and its rate; 500 Hz where none is given.
        """
        rows = self.rows_of(shard)
        if signals_uv.ndim != 3 or signals_uv.shape[:2] != (rows.stop - rows.start, len(LEADS)):
            raise StoreError(
                f"{self.path}: shard {shard} takes {rows.stop - rows.start} records, got {signals_uv.shape}"
            )
        rates = rates_at_500_hz(valid) if rate_hz is None else rate_hz
        self.write_packed(shard, [self.pack(signals_uv, self.digests_of(signals_uv, valid, rates))], valid, rates)

    def pack(self, signals_uv: np.ndarray, digests: np.ndarray) -> PackedRows:
        """Encode rows of one shard that begin at a chunk's border; writes nothing, and any thread may do it.

        Parameters
        ----------
        signals_uv
            int16 [rows, 12, time]. May be overwritten afterwards.
        digests
            Of `digests_of`.
        """
        if self.codec is None:
            raise StoreError(
                f"{self.path} was laid out by another tool and is not written into; remove it, or name another"
            )
        values, packer = np.asarray(signals_uv, dtype=np.int16), packer_of(self.codec)
        return PackedRows(list(packed_pieces(values, N_SAMPLES, self.chunk_records, MISSING, packer)), digests)

    def write_packed(
        self,
        shard: int,
        parts: Sequence[PackedRows],
        valid: np.ndarray,
        rate_hz: np.ndarray | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Write one whole shard from its rows, packed part by part; all parts but the last are whole chunks.

        Where a record is longer than the time axis, `lengthen_signals` is to be called after the last shard.

        Parameters
        ----------
        guard
            Raises where this process may no longer write (`Claims.confirm`).
        """
        folder = shard_file(self.path, self.signals, shard).parent
        pieces = list(side_by_side([(part.pieces, len(part.digests)) for part in parts], self.chunk_records))
        for k, chunks in enumerate(pieces):
            packed = shard_pieces(chunks, self.shard_records // self.chunk_records)
            write_durably(folder / str(k), self.path / self.signals.basename, packed, guard)
        for file in folder.children() if isinstance(folder, ObjectPath) else folder.iterdir():
            if file.name.isdigit() and int(file.name) >= len(pieces):  # what longer records have left there
                file.unlink()
        write_shard(self.path, self.valid, shard, self.shard_records, valid.astype(np.int32), guard)
        if self.rate_hz is not None:
            rates = rates_at_500_hz(valid) if rate_hz is None else rate_hz
            write_shard(self.path, self.rate_hz, shard, self.shard_records, rates.astype(np.float64), guard)
        digests = np.concatenate([part.digests for part in parts])
        write_shard(self.path, self.digest, shard, self.shard_records, digests, guard)

    def digests_of(
        self, signals_uv: np.ndarray, valid: np.ndarray | None = None, rate_hz: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the digests that rows int16 [rows, 12, time] have in this store, uint8 [rows, 16].

        They are taken of the samples that a record has, and its rate where that is not 500 Hz; of a record that could
        not be read, of ten seconds of missing samples. The first version took them of all 5000 samples.
        """
        if self.rate_hz is None or valid is None:
            return row_digests(signals_uv, self.row_digest)
        rates = rates_at_500_hz(valid) if rate_hz is None else rate_hz
        if signals_uv.shape[2] == N_SAMPLES and ((valid == 0) | ((valid == N_SAMPLES) & (rates == RATE_HZ))).all():
            return row_digests(signals_uv, self.row_digest)
        rows = [_digested(row, int(n), float(rate)) for row, n, rate in zip(signals_uv, valid, rates, strict=True)]
        return row_digests(rows, self.row_digest)

    def drop(self, shard: int) -> None:
        """Remove a shard, its digests first, so that it is read from the records again."""
        for array in reversed(self.facts()):
            shard_file(self.path, array, shard).unlink(missing_ok=True)
        for file in self.signal_files(shard):
            file.unlink(missing_ok=True)

    def all_missing(self, digests: np.ndarray) -> bool:
        """Whether these rows' digests are all that of a record without a single sample."""
        nothing = np.full((1, len(LEADS), N_SAMPLES), MISSING, dtype=np.int16)
        return bool((digests == row_digests(nothing, self.row_digest)).all())

    def lost_files(self, shard: int) -> list[Location]:
        """Return the files of a shard's samples that should be there and are not."""
        first, *later = self.signal_files(shard)
        lost = [] if first.exists() else [first]
        if later:
            longest = int(self.valid_of(self.rows_of(shard)).max(initial=0))
            lost += [file for k, file in enumerate(later, 1) if longest > k * N_SAMPLES and not file.exists()]
        digests = self.row_digests_of(self.rows_of(shard)) if lost else np.empty(0)
        return [] if not lost or not digests.any() or self.all_missing(digests) else lost

    def _require_files(self, rows: slice) -> None:
        """Refuse a shard whose file is lost: it would read as missing samples, as one of unreadable records does."""
        start, stop, _ = rows.indices(len(self))
        for shard in range(start // self.shard_records, -(-stop // self.shard_records)):
            if shard in self._seen:
                continue
            if self.lost_files(shard):
                raise ValueError(f"shard {shard} is missing")
            if isinstance(self.path, ObjectPath):  # to ask is a request, for each batch of the shard
                self._seen.add(shard)

    def read_uv(self, rows: slice, n_samples: int | None = None) -> np.ndarray:
        """Read contiguous rows as int16 microvolts [rows, 12, time], or their first `n_samples` samples."""
        try:
            self._require_files(rows)
            return np.asarray(self.signals[rows] if n_samples is None else self.signals[rows, :, :n_samples])
        except ZARR_ERRORS as error:
            raise StoreError(
                f"{self.path}: records {rows.start}..{rows.stop} are damaged ({error}); run "
                "`ensemble cache repair`, then `ensemble ingest`"
            ) from error

    def read_mv(self, rows: slice) -> np.ndarray:
        """Read contiguous rows as float32 mV [rows, 12, time]; missing, or behind the record's end = NaN."""
        return to_millivolts(self.read_uv(rows))

    def read_groups(
        self, rows: slice, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """Read contiguous rows as groups of one rate and length, each record as long as it is.

        Parameters
        ----------
        wanted
            bool [rows]: which of them; None: all that could be read.

        Yields
        ------
        Positions counted from `rows.start`, int [k]; float32 mV [k, 12, time], missing = NaN; the rate in Hz.
        """
        valid, rates = self.valid_of(rows), self.rates_of(rows)
        chosen = valid > 0 if wanted is None else wanted & (valid > 0)
        if not chosen.any():
            return
        signals_uv = self.read_uv(rows, int(valid[chosen].max()))
        for n_samples, rate_hz in dict.fromkeys(zip(valid[chosen].tolist(), rates[chosen].tolist(), strict=True)):
            alike = chosen & (valid == n_samples) & (rates == rate_hz)
            part = signals_uv if alike.all() else signals_uv[alike, :, :n_samples]
            yield np.flatnonzero(alike), to_millivolts(part), rate_hz

    def valid_of(self, rows: slice) -> np.ndarray:
        """Read how many samples each of the rows has, int32 [rows]; 0 where the record could not be read."""
        return self._facts(self.valid, rows)

    def rates_of(self, rows: slice) -> np.ndarray:
        """Read the rate of each of the rows in Hz, float64 [rows]; 0 where the record could not be read."""
        return rates_at_500_hz(self.valid_of(rows)) if self.rate_hz is None else self._facts(self.rate_hz, rows)

    def _facts(self, array: zarr.Array[Any], rows: slice) -> np.ndarray:
        try:
            return np.asarray(array[rows])
        except ZARR_ERRORS as error:
            raise StoreError(
                f"{self.path}: {array.basename} is damaged ({error}); run `ensemble cache repair`, then ingest again"
            ) from error

    def row_digests_of(self, rows: slice) -> np.ndarray:
        """Read the digests of contiguous rows as they were written, uint8 [rows, 16]."""
        try:
            return np.asarray(self.digest[rows])
        except ZARR_ERRORS as error:
            raise StoreError(
                f"{self.path}: the row digests are damaged ({error}); run `ensemble ingest` again"
            ) from error

    def content_digest(self, n_records: int | None = None) -> str:
        """Return the sha256 of the first `n_records` rows' digests; refuses a store that is not complete.

        A store that was appended to keeps the digest of its first rows, which is how embeddings of them stay valid. In
        one of the first version, whose digests do not tell how long records are, lengths count too if some are short.
        """
        n, step = len(self) if n_records is None else n_records, DIGESTS_AT_ONCE
        digest, n_absent, lengths = hashlib.sha256(), 0, []
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            digests = self.row_digests_of(rows)
            n_absent += int((~digests.any(axis=1)).sum())
            digest.update(digests.tobytes())
            if self.rate_hz is None:
                lengths.append(self.valid_of(rows).astype("<i4"))
        if n_absent:
            raise StoreError(f"{self.path}: {n_absent} records are not written yet; run `ensemble ingest`")
        if any(((part > 0) & (part < N_SAMPLES)).any() for part in lengths):
            digest.update(np.concatenate(lengths).tobytes())
        return digest.hexdigest()


def rates_at_500_hz(valid: np.ndarray) -> np.ndarray:
    """Return the rates of records that are all at 500 Hz, of their lengths; 0 where there is none."""
    return np.where(np.asarray(valid) > 0, float(RATE_HZ), 0.0)


def _digested(row: np.ndarray, n_samples: int, rate_hz: float) -> np.ndarray:
    """Return what the digest of a row [12, time] is taken of."""
    if n_samples == 0:
        return np.full((len(LEADS), N_SAMPLES), MISSING, dtype=np.int16)
    samples = np.ascontiguousarray(row[:, :n_samples], dtype="<i2")
    if rate_hz == RATE_HZ:
        return samples
    return np.frombuffer(samples.tobytes() + np.array(rate_hz, dtype="<f8").tobytes(), dtype=np.uint8)


def create_signals(
    path: str | Location, n_records: int, shard_records: int = SHARD_RECORDS, *, guard: Guard | None = None
) -> SignalStore:
    """Make an empty store (replacing one that stands there); `guard` as of `SignalStore.write_packed`."""
    path, attributes = location_of(path), {**SIGNAL_ATTRIBUTES, "row_digest": ROW_DIGEST}
    create_group(path, attributes, lambda group, _: add_signal_arrays(group, n_records, shard_records, _CODEC), guard)
    return open_signals(path, mode="r+")


def add_signal_arrays(
    group: zarr.Group, n_records: int, shard: int, codec: BloscCodec, n_samples: int = N_SAMPLES
) -> None:
    """Add the arrays of a store to a new group."""
    shape, piece = (n_records, len(LEADS), n_samples), (len(LEADS), N_SAMPLES)
    packing: dict[str, Any] = {"shards": (shard, *piece), "compressors": codec, "fill_value": MISSING}
    add_array(group, "signals", shape, (CHUNK_RECORDS, *piece), shard_rows=shard, dtype="int16", **packing)
    add_array(group, "valid", (n_records,), (shard,), shard_rows=shard, dtype="int32", fill_value=0)
    add_array(group, "rate_hz", (n_records,), (shard,), shard_rows=shard, dtype="float64", fill_value=0.0)
    digest_shape, digest_chunks = (n_records, DIGEST_BYTES), (shard, DIGEST_BYTES)
    add_array(group, "digest", digest_shape, digest_chunks, shard_rows=shard, dtype="uint8", fill_value=0)


def open_signals(path: str | Location = "signals.zarr", mode: str = "r") -> SignalStore:
    """Open signals.zarr, a folder or a URL such as `s3://bucket/signals.zarr`; read-only unless `mode` is "r+"."""
    path = location_of(path)
    return SignalStore(path, open_group(path, made_by="ensemble ingest", mode=mode))
