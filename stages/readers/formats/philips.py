"""Philips Sierra XML (`restingecgdata` 1.03 to 1.04.02; PageWriter, TraceMasterVue, IntelliSpace), packed or not.

In packed files III, aVR, aVL and aVF are residuals of I and II and rebuilt. A calibration pulse behind the rhythm is
cut off: `durationperchannel` says where the rhythm ends, else what no patient has in all chest leads at once.
"""

from __future__ import annotations

import base64
import binascii
from xml.etree.ElementTree import Element

import numpy as np

from cache.errors import InputError
from stages.readers.formats.parts.assemble import assemble
from stages.readers.formats.parts.contract import Beginning, Facts, FileLead, Format, Reading
from stages.readers.formats.parts.datakit import leads_of, parse
from stages.readers.formats.parts.xml_file import (
    MAX_XML_BYTES,
    check_root,
    lines_of_text,
    moment,
    number,
    numbers_of,
    sex_of,
    text_of,
    words_of,
)
from stages.readers.recording import Recording
from stages.readers.wfdb.limits import check_size

ROOT = "restingecgdata"
_PATIENT = "patient/generalpatientdata"
_NAMES = ("name/lastname", "name/firstname", "lastname", "firstname")
_MEASURED = {
    "heart_rate_bpm": ("heartrate", "meanventrate"),
    "rr_ms": ("rrint",),
    "pr_ms": ("print", "meanprint"),
    "qrs_ms": ("qrsdur", "meanqrsdur"),
    "qt_ms": ("qtint", "meanqtint"),
    "qtc_ms": ("qtcb", "meanqtc"),
    "p_axis_deg": ("pfrontaxis",),
    "qrs_axis_deg": ("qrsfrontaxis",),
    "t_axis_deg": ("tfrontaxis",),
}
_BLOCKS = (
    "interpretations/interpretation/globalmeasurements",
    "interpretations/interpretation/interpretationmeasurements",
    "internalmeasurements/crossleadmeasurements",
    "measurements/globalmeasurements",
)
PULSE_S = (0.1, 1.5)
"""A calibration pulse lasts 0.2 s, with a rest before and behind it."""
LEAST_CHEST_LEADS = 6
XLI_HEAD_BYTES, XLI_BITS, XLI_LAST_CODE = 8, 10, 1022


def _knows(beginning: Beginning) -> bool:
    return beginning.root == ROOT


def _read(path: str, reading: Reading) -> Recording:
    root = check_root(path, ROOT)
    _check_packed(root)
    record, notes = parse("sierra_xml:SierraXMLParser", path)
    leads = _whole(root, leads_of(record))
    length = _without_pulse(leads)
    if length < len(leads[0].samples):
        notes = (*notes, "a calibration pulse behind the rhythm is cut off")
    leads = [_cut(lead, length) for lead in leads]
    return assemble(leads, reading, notes)


def _check_packed(root: Element) -> None:
    """Refuse packed samples that unpack to more than the file states: a few codes may stand for any number of bytes."""
    waveforms = next(root.iter("parsedwaveforms"), None)
    if waveforms is None or (waveforms.get("compression") or waveforms.get("compressmethod") or "").upper() != "XLI":
        return
    duration_ms, rate_hz = number(waveforms.get("durationperchannel")), number(waveforms.get("samplespersecond"))
    rate_hz = rate_hz or number(text_of(root, "dataacquisition/signalcharacteristics/samplingrate"))
    if not duration_ms or not rate_hz:
        raise InputError("its length is not known: the file states no duration or rate")
    n_samples = round(duration_ms * rate_hz / 1000)
    check_size(n_samples)
    most = 2 * (n_samples + round(PULSE_S[1] * rate_hz))
    content, place = _decoded(waveforms), 0
    while place + XLI_HEAD_BYTES <= len(content):
        size = int.from_bytes(content[place : place + 4], "little")
        place += XLI_HEAD_BYTES
        if _unpacked_bytes(content[place : place + size], most) > most:
            raise InputError(f"a packed lead unpacks to more than the {n_samples} samples that the file states")
        place += size


def _unpacked_bytes(packed: bytes, most: int) -> int:
    """Return how many bytes LZW codes of ten bits unpack to; counting ends beyond `most`."""
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    whole = bits[: len(bits) // XLI_BITS * XLI_BITS].reshape(-1, XLI_BITS)
    lengths, before, total = [1] * 256, 0, 0
    for code in (whole @ (1 << np.arange(XLI_BITS)[::-1])).tolist():
        if code > XLI_LAST_CODE or total > most:
            break
        length = lengths[code] if code < len(lengths) else before + 1
        if before and len(lengths) <= XLI_LAST_CODE:
            lengths.append(before + 1)
        total, before = total + length, length
    return total


def _decoded(waveforms: Element) -> bytes:
    try:
        return base64.b64decode("".join((waveforms.text or "").split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("its samples are damaged: they are no Base64") from error


def _cut(lead: FileLead, length: int) -> FileLead:
    clipped = None if lead.clipped is None else lead.clipped[:length]
    return lead._replace(samples=lead.samples[:length], clipped=clipped)


def _whole(root: Element, leads: list[FileLead]) -> list[FileLead]:
    """Read the samples of a file that is not packed anew where it has more of each lead than its duration says.

    Leads lie one behind the other: each is longer than the duration, or all but the first would begin in another one.
    """
    waveforms = next(root.iter("parsedwaveforms"))
    packed = (waveforms.get("compression") or waveforms.get("compressmethod") or "").lower()
    flagged = (waveforms.get("compressflag") or "").lower() not in ("false", "no", "f", "0")
    if waveforms.get("dataencoding") != "Base64" or (packed not in ("", "none", "uncompressed") and flagged):
        return leads
    content = _decoded(waveforms)
    n_bytes, size = len(content), len(leads[0].samples)
    if n_bytes == 2 * len(leads) * size:
        return leads
    if n_bytes % (2 * len(leads)):
        raise InputError(f"it holds {n_bytes} bytes of samples, which {len(leads)} leads cannot share")
    signed = np.dtype("<i2") if (leads[0].samples < 0).any() or _signed(root, waveforms) else np.dtype("<u2")
    rows = np.frombuffer(content, dtype=signed).reshape(len(leads), -1)[:, :size].astype(np.float64)
    limits = np.abs(rows) >= np.iinfo(np.int16).max
    return [lead._replace(samples=row, clipped=at) for lead, row, at in zip(leads, rows, limits, strict=True)]


def _signed(root: Element, waveforms: Element) -> bool:
    text = waveforms.get("signalsigned") or text_of(root, "dataacquisition/signalcharacteristics/signalsigned") or ""
    return text.strip().lower() not in ("false", "no", "f", "0")


def _without_pulse(leads: list[FileLead]) -> int:
    """Return how many samples of a lead are the patient's: behind them all chest leads are one and the same pulse."""
    chest = [lead.samples for lead in leads if lead.name.upper().startswith("V")]
    length = len(leads[0].samples)
    if len(chest) < LEAST_CHEST_LEADS or any(len(wave) != length for wave in chest):
        return length
    waves = np.stack(chest)
    last = waves[:, -1:]
    # Each lead rests on its own base line; the pulse is the same in all.
    differing = np.flatnonzero(((waves - last) != (waves - last)[0]).any(axis=0))
    start = int(differing[-1]) + 1 if len(differing) else 0
    pulse_s = (length - start) / leads[0].rate_hz
    moves = len(np.unique(waves[0, start:])) > 1
    return start if PULSE_S[0] <= pulse_s <= PULSE_S[1] and moves and start else length


def _facts(path: str) -> Facts:
    root = check_root(path, ROOT)
    patient, acquisition = root.find(_PATIENT), root.find("dataacquisition")
    age = number(text_of(patient, "age/years"))
    return Facts(
        patient_id=_known(text_of(patient, "patientid")) or _known(text_of(patient, "MRN")),
        acquired=None if acquisition is None else moment(acquisition.get("date"), acquisition.get("time")),
        sex=sex_of(text_of(patient, "sex")),
        measurements={**_measurements(root), **_filters(root), **({} if age is None else {"age_years": age})},
        statements=lines_of_text([code.text for code in root.iter("statementcode")]),
        private=words_of(*(text_of(patient, name) for name in _NAMES)),
    )


def _known(text: str | None) -> str | None:
    return text if text and text.strip("- ") else None


def _measurements(root: Element) -> dict[str, float]:
    found: dict[str, float] = {}
    for block in map(root.find, _BLOCKS):
        for name, tags in _MEASURED.items():
            values = numbers_of(block, {tag: tag for tag in tags})
            for value in values.values():
                found.setdefault(name, value)
    return found


def _filters(root: Element) -> dict[str, float]:
    """Return the filters of the samples that are stored, else those of the cart."""
    waveforms = next(root.iter("parsedwaveforms"), None)
    cart = root.find("dataacquisition/signalcharacteristics")
    tags = {"filter_high_pass_hz": "hipass", "filter_low_pass_hz": "lowpass", "filter_notch_hz": "notchfilterfreqs"}
    found = {}
    for name, tag in tags.items():
        value = number(None if waveforms is None else waveforms.get(tag)) or number(text_of(cart, tag))
        if value:
            found[name] = value
    band = (text_of(cart, "signalbandwidth") or "").split("-")
    if len(band) == 2 and not found:
        pairs = zip(("filter_high_pass_hz", "filter_low_pass_hz"), map(number, band), strict=True)
        found = {name: value for name, value in pairs if value}
    return found


FORMAT = Format("Philips Sierra XML", "ecgdatakit", _knows, _read, _facts, MAX_XML_BYTES)
