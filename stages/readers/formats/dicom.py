"""DICOM waveforms (12-lead, general, ambulatory ECG): the ORIGINAL multiplex group, in physical units.

Value = (count + baseline / (sensitivity x correction)) x sensitivity x correction, PS3.3 C.10.9; the padding value is
missing. Leads are known by their code, else by what the code means. Needs pydicom (MIT).
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cache.errors import InputError
from stages.readers.formats.dicom_facts import facts_of
from stages.readers.formats.parts.assemble import assemble
from stages.readers.formats.parts.contract import EXTRA, Beginning, Facts, FileLead, Format, Reading
from stages.readers.lead_names import arrange
from stages.readers.recording import Recording
from stages.readers.units import millivolts_per

MAX_BYTES = 256 << 20
PREAMBLE_BYTES, HEAD_BYTES, LENGTH_ELEMENT_BYTES = 128, 132, 12
DEFLATED = "1.2.840.10008.1.2.1.99"
WAVEFORMS = "1.2.840.10008.5.1.4.1.1.9."
"""SOP classes of waveforms begin so."""
_LEADS = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF", **{2 + k: f"V{k}" for k in range(1, 7)}}
"""Numbers of the codes of SCP-ECG (5.6.3-9-N) and MDC (2:N)."""
_TYPES = {"SB": "i1", "UB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"}
Found = TypeVar("Found")
_AVERAGED = ("MEDIAN", "REPRESENTATIVE", "AVERAGE", "TEMPLATE", "BEAT")


def _knows(beginning: Beginning) -> bool:
    content = beginning.content
    if content[128:132] == b"DICM":
        return True
    # Without the preamble a data set begins with an element of group 2 or 8.
    group, vr, length = content[:2], content[4:6], content[6:8]
    explicit = vr in (b"UL", b"UI", b"CS", b"SH") and len(length) == 2 and struct.unpack("<H", length)[0] <= 64
    return group in (b"\x02\0", b"\x08\0") and explicit


def _looked_at(path: str, use: Callable[[Any], Found]) -> Found:
    """Return what `use` finds in the data set of a file.

    Raises
    ------
    InputError
        pydicom is not installed, the file is damaged, or a packed one unpacks to more than an ECG.
    """
    try:
        import pydicom
        from pydicom import config
    except ImportError as error:
        raise InputError(f"reading DICOM files needs pydicom; run {EXTRA}") from error
    # Elements are decoded when they are looked at, so that damage shows in `use` too, in any way.
    with _without_words(), config.disable_value_validation():
        try:
            _check_packed(path, pydicom.filereader.read_file_meta_info)
            return use(pydicom.dcmread(path, force=True, stop_before_pixels=True))  # pictures lie in archives, too
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"its DICOM data set is damaged ({type(error).__name__})") from error


@contextmanager
def _without_words() -> Iterator[None]:
    """Let pydicom neither warn nor log: it repeats values, and so names."""
    logger = logging.getLogger("pydicom")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _check_packed(path: str, read_meta: Callable[[str], Any]) -> None:
    """Refuse a deflated file that unpacks to more than is read of any file."""
    with Path(path).open("rb") as file:
        if file.read(HEAD_BYTES)[PREAMBLE_BYTES:] != b"DICM":
            return
        meta = read_meta(path)
        if meta.get("TransferSyntaxUID") != DEFLATED:
            return
        file.seek(HEAD_BYTES + LENGTH_ELEMENT_BYTES + int(meta.FileMetaInformationGroupLength))
        packed = file.read()
    unpacking, n_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while packed and not unpacking.eof and n_bytes <= MAX_BYTES:
        n_bytes += len(unpacking.decompress(packed, 1 << 22))
        packed = unpacking.unconsumed_tail
    if n_bytes > MAX_BYTES:
        raise InputError(f"it unpacks to more than {MAX_BYTES >> 20} MB")


def _read(path: str, reading: Reading) -> Recording:
    return _looked_at(path, lambda data: _rhythm(data, reading))


def _rhythm(data: Any, reading: Reading) -> Recording:
    groups = list(data.get("WaveformSequence") or ())
    if not groups:
        raise InputError("it holds no waveform; a report or picture of an ECG cannot be read")
    chosen = [group for group in groups if _is_original(group)]
    if not chosen:
        raise InputError("none of its multiplex groups is an original rhythm: all are derived (median beats)")
    read = [_leads(group, _little_endian(data)) for group in chosen]
    order = sorted(range(len(read)), key=lambda k: (-_n_standard(read[k], reading), -_n_samples(chosen[k]), k))
    main = order[0]
    leads, n_left = list(read[main]), 0
    for k in order[1:]:
        more = _later(chosen[main], chosen[k], read[k], leads, reading)
        leads += more
        n_left += not more
    notes = [f"{n_left} further multiplex groups are not read"] if n_left else []
    return assemble(leads, reading, notes)


def _is_original(group: Any) -> bool:
    """Whether a group is what was recorded; where it does not say, its label must not say that it is a mean beat."""
    originality = str(group.get("WaveformOriginality") or "").strip().upper()
    label = str(group.get("MultiplexGroupLabel") or "").upper()
    return originality != "DERIVED" and not any(word in label for word in _AVERAGED)


def _n_standard(leads: list[FileLead], reading: Reading) -> int:
    return len(arrange(tuple(lead.name for lead in leads), reading.lead_names).columns)


def _n_samples(group: Any) -> int:
    return int(group.get("NumberOfWaveformSamples") or 0)


def _later(main: Any, group: Any, read: list[FileLead], leads: list[FileLead], reading: Reading) -> list[FileLead]:
    """Return the leads of another group that the record lacks, where it was recorded: carts may print 4 x 2.5 s."""
    names = tuple(lead.name for lead in (*leads, *read))
    together = arrange(names, reading.lead_names)
    if any(column >= len(leads) for _, column in together.repeated) or read[0].rate_hz != leads[0].rate_hz:
        return []
    ahead_s = (_offset_ms(group) - _offset_ms(main)) / 1000
    gap = np.full(max(round(ahead_s * read[0].rate_hz), 0), np.nan)
    taken = {column - len(leads) for _, column in together.columns}
    if ahead_s < 0 or not taken & set(range(len(read))):
        return []
    return [
        lead._replace(samples=np.concatenate([gap, lead.samples]), clipped=None)
        for k, lead in enumerate(read)
        if k in taken
    ]


def _offset_ms(group: Any) -> float:
    return float(group.get("MultiplexGroupTimeOffset") or 0.0)


def _little_endian(data: Any) -> bool:
    meta = getattr(data, "file_meta", None)
    syntax = None if meta is None else meta.get("TransferSyntaxUID")
    return syntax is None or bool(getattr(syntax, "is_little_endian", True))


def _leads(group: Any, little_endian: bool) -> list[FileLead]:
    channels = list(group.get("ChannelDefinitionSequence") or ())
    counts, missing = _counts(group, len(channels), little_endian)
    rate_hz = float(group.get("SamplingFrequency") or 0.0)
    info = np.iinfo(counts.dtype)
    leads = []
    for channel, column, absent in zip(channels, counts.T, missing.T, strict=True):
        step_mv, offset_mv = _scale(channel)
        samples = column.astype(np.float64)
        samples[absent] = np.nan
        clipped = ((column == info.max) | (column == info.min)) & ~absent
        leads.append(FileLead(_name(channel), samples, step_mv, offset_mv, rate_hz, clipped))
    return leads


def _counts(group: Any, n_channels: int, little_endian: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of a group and which are padding, both [time, channel]."""
    interpretation = str(group.get("WaveformSampleInterpretation") or "")
    kind = _TYPES.get(interpretation)
    if kind is None:
        law = {"MB": " (mu-law)", "AB": " (A-law)"}.get(interpretation, "")
        raise InputError(f"its samples are of the kind {interpretation[:4] or '(none)'}{law}, which is not read")
    dtype = np.dtype(("<" if little_endian else ">") + kind)
    content = bytes(group.get("WaveformData") or b"")
    n_samples, bits = _n_samples(group), int(group.get("WaveformBitsAllocated") or 0)
    if bits != 8 * dtype.itemsize or n_channels != int(group.get("NumberOfWaveformChannels") or 0) or not n_channels:
        raise InputError("a multiplex group contradicts itself: its channels or bits are not those of its samples")
    n_bytes = n_samples * n_channels * dtype.itemsize
    if not n_samples or len(content) < n_bytes:
        raise InputError(f"a multiplex group is cut short: {len(content)} of {n_bytes} bytes are there")
    counts = np.frombuffer(content, dtype=dtype, count=n_samples * n_channels).reshape(n_samples, n_channels)
    padding = group.get("WaveformPaddingValue")
    if padding is None or len(bytes(padding)) < dtype.itemsize:
        return counts, np.zeros(counts.shape, dtype=bool)
    return counts, counts == np.frombuffer(bytes(padding), dtype=dtype, count=1)[0]


def _scale(channel: Any) -> tuple[float | None, float]:
    """Return mV of a count and of count 0."""
    unit = next(iter(channel.get("ChannelSensitivityUnitsSequence") or ()), None)
    unit_mv = None if unit is None else millivolts_per(str(unit.get("CodeValue") or "").strip())
    sensitivity = channel.get("ChannelSensitivity")
    if unit_mv is None or sensitivity is None:
        return None, 0.0
    correction = channel.get("ChannelSensitivityCorrectionFactor")
    step = float(sensitivity) * (1.0 if correction is None else float(correction))
    return step * unit_mv, float(channel.get("ChannelBaseline") or 0.0) * unit_mv


def _name(channel: Any) -> str:
    """Name a channel by its code, by what its code means, or by its label."""
    source = next(iter(channel.get("ChannelSourceSequence") or ()), None)
    for name in _names(source, channel):
        if arrange((name,)).columns:
            return name
    return str((source.get("CodeMeaning") if source is not None else None) or channel.get("ChannelLabel") or "?")


def _names(source: Any, channel: Any) -> Iterator[str]:
    if source is not None:
        code = str(source.get("CodeValue") or "")
        number = code.removeprefix("5.6.3-9-").removeprefix("2:")
        if number != code and number.isdigit() and int(number) in _LEADS:
            yield _LEADS[int(number)]
        yield code
        yield str(source.get("CodeMeaning") or "")
    yield str(channel.get("ChannelLabel") or "")


def _facts(path: str) -> Facts:
    return _looked_at(path, facts_of)


def holds_waveform(path: str) -> bool:
    """Whether a DICOM file is one of waveforms: an archive's export holds pictures and reports as well."""
    return _looked_at(
        path, lambda data: str(data.get("SOPClassUID") or "").startswith(WAVEFORMS) or "WaveformSequence" in data
    )


FORMAT = Format("DICOM ECG", "pydicom", _knows, _read, _facts, MAX_BYTES)
