"""Writers of the binary formats, by their standards; none of them is used by the readers."""

import binascii
import struct
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.hospital.ecgs import BIRTH, COMMENT, FAMILY, GIVEN, Ecg

SCP_CODES = {"I": 1, "II": 2, "III": 61, "aVR": 62, "aVL": 63, "aVF": 64, **{f"V{k}": k + 2 for k in range(1, 7)}}


# ---- DICOM -----------------------------------------------------------------------------------------------------------


def dicom_group(
    ecg: Ecg,
    counts: np.ndarray,
    originality: str | None = "ORIGINAL",
    label: str | None = "RHYTHM",
    *,
    padding: int | None = None,
    correction: float | None = 1.0,
    baseline: float = 0.0,
    sensitivity: bool = True,
    unit: str = "uV",
    scheme: str = "MDC",
) -> Dataset:
    """Return one multiplex group."""
    group = Dataset()
    if originality is not None:
        group.WaveformOriginality = originality
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = counts.shape
    group.SamplingFrequency = ecg.rate_hz
    if label is not None:
        group.MultiplexGroupLabel = label
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    if padding is not None:
        group.add_new("WaveformPaddingValue", "OW", struct.pack("<h", padding))
    channels = []
    for name in ecg.leads:
        channel, source, units = Dataset(), Dataset(), Dataset()
        source.CodeValue = f"2:{SCP_CODES[name]}" if scheme == "MDC" else f"5.6.3-9-{SCP_CODES[name]}"
        source.CodingSchemeDesignator, source.CodeMeaning = scheme, f"Lead {name}"
        channel.ChannelSourceSequence = Sequence([source])
        if sensitivity:
            units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = unit, "UCUM", "unit"
            channel.ChannelSensitivity = round(ecg.step_uv * (1e-3 if unit == "mV" else 1.0) / (correction or 1.0), 9)
            channel.ChannelSensitivityUnitsSequence = Sequence([units])
            channel.ChannelBaseline = baseline
            if correction is not None:
                channel.ChannelSensitivityCorrectionFactor = correction
        channel.WaveformBitsStored, channel.FilterLowFrequency, channel.FilterHighFrequency = 16, 0.05, 150
        channel.ChannelSampleSkew = 0
        channels.append(channel)
    group.ChannelDefinitionSequence = Sequence(channels)
    group.add_new("WaveformData", "OW", counts.T.astype("<i2").tobytes())
    return group


def dicom(ecg: Ecg, path: Path, groups: list[Dataset] | None = None, syntax: str = ExplicitVRLittleEndian) -> None:
    """Write a 12-lead ECG with a derived group of mean beats before the original rhythm, unless `groups` are given."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = ecg.test_id, syntax
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, ecg.test_id
    data.PatientName, data.PatientID, data.PatientSex = f"{FAMILY}^{GIVEN}", ecg.patient_id, "F"
    data.PatientBirthDate, data.PatientAge, data.Modality = f"{BIRTH:%Y%m%d}", "072Y", "ECG"
    data.AcquisitionDateTime = f"{ecg.acquired:%Y%m%d%H%M%S}"
    data.PatientComments, data.StudyInstanceUID = COMMENT, generate_uid()
    derived = dicom_group(ecg, ecg.median, "DERIVED", "MEDIAN BEAT")
    data.WaveformSequence = Sequence([derived, dicom_group(ecg, ecg.counts)] if groups is None else groups)
    data.WaveformAnnotationSequence = Sequence(
        [
            _measured("2:15872", ecg.pr_ms, "ms"),
            _measured("2:16156", ecg.qrs_ms, "ms"),
            _measured("2:16160", ecg.qt_ms, "ms"),
            _measured("2:16132", ecg.qrs_axis, "deg"),
            _text(COMMENT),
        ]
    )
    data.save_as(path, enforce_file_format=True)


def _measured(code: str, value: float, unit: str) -> Dataset:
    one, name, units = Dataset(), Dataset(), Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = code, "MDC", "measurement"
    units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = unit, "UCUM", unit
    one.ConceptNameCodeSequence, one.MeasurementUnitsCodeSequence = Sequence([name]), Sequence([units])
    one.NumericValue = value
    return one


def _text(text: str) -> Dataset:
    one = Dataset()
    one.UnformattedTextValue = text
    return one


# ---- EDF -------------------------------------------------------------------------------------------------------------


def edf(ecg: Ecg, path: Path, *, unit: str = "uV", gap: bool = False) -> None:
    """EDF+ of data records of one second; `gap` makes it EDF+D with two seconds missing behind the third."""
    rate, names = ecg.rate_hz, [f"ECG {lead}" for lead in ecg.leads]
    n_records = ecg.counts.shape[1] // rate
    scale = ecg.step_uv * {"uV": 1.0, "mV": 1e-3, "": 1.0}[unit]
    texts = 60
    heads = [
        [*names, "EDF Annotations"],
        ["AgCl"] * len(names) + [""],
        [unit] * len(names) + [""],
        *[[f"{sign * 32767 * scale:.8g}"[:8] for _ in names] + [str(sign)] for sign in (-1, 1)],
        ["-32767"] * len(names) + ["-32768"],
        ["32767"] * (len(names) + 1),
        ["HP:0.05Hz LP:150Hz N:50Hz"] * len(names) + [""],
        [str(rate)] * len(names) + [str(texts // 2)],
        [""] * (len(names) + 1),
    ]
    widths = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
    n_signals = len(names) + 1
    kind = "EDF+D" if gap else "EDF+C"
    patient = f"{ecg.patient_id} F {BIRTH:%d-%b-%Y} {FAMILY}_{GIVEN}".replace("Mar", "MAR")
    started = f"Startdate {ecg.acquired:%d-%b-%Y} {ecg.test_id} X X".replace("Feb", "FEB")
    head = f"{'0':<8}{patient:<80}{started:<80}{ecg.acquired:%d.%m.%y}{ecg.acquired:%H.%M.%S}"
    head += f"{256 * (n_signals + 1):<8}{kind:<44}{n_records:<8}{'1':<8}{n_signals:<4}"
    head += "".join(f"{value:<{width}}" for values, width in zip(heads, widths, strict=True) for value in values)
    body = b""
    for k in range(n_records):
        onset = k + (2 if gap and k >= 3 else 0)
        said = f"+{onset}\x14\x14\0" + (f"+{onset}\x14{COMMENT}\x14\0" if k == 0 else "")
        body += ecg.counts[:, k * rate : (k + 1) * rate].astype("<i2").tobytes() + said.encode().ljust(texts, b"\0")
    path.write_bytes(head.encode("ascii") + body)


def edf_step_uv(step_uv: float) -> float:
    """Return the step that eight characters of a physical limit can state of `step_uv`."""
    return float(f"{32767 * step_uv:.8g}"[:8]) / 32767


# ---- SCP-ECG ---------------------------------------------------------------------------------------------------------


def scp(ecg: Ecg, path: Path, *, packed: bool = False, differences: int = 0, subtract: bool = False) -> None:
    """SCP-ECG with mean beats (section 5); `packed` by the standard's Huffman table, of first or second differences.

    With `subtract` the mean beat is taken off the rhythm around one QRS complex, as the standard allows.
    """
    avm, interval = round(ecg.step_uv * 1000), round(1e6 / ecg.rate_hz)
    counts = ecg.counts.copy()
    size, fiducial, beat = ecg.median.shape[1], 100, (560, 650, 799)
    if subtract:
        first = beat[1] - fiducial
        counts[:, beat[0] - 1 : beat[2]] -= ecg.median[:, beat[0] - 1 - first : beat[2] - first]
    leads = b"".join(struct.pack("<IIB", 1, ecg.counts.shape[1], SCP_CODES[name]) for name in ecg.leads)
    sections = {
        1: _scp_patient(ecg),
        **({2: struct.pack("<H", 19999)} if packed else {}),
        3: bytes([len(ecg.leads), (1 if subtract else 0) | 4 | (len(ecg.leads) << 3) & 0xF8]) + leads,
        4: struct.pack("<HHH", 1000 * size // ecg.rate_hz, fiducial, 1 if subtract else 0)
        + (struct.pack("<HIII", 0, *beat) + struct.pack("<II", beat[0], beat[2]) if subtract else b""),
        5: _scp_samples(ecg.median, avm, interval, packed, differences),
        6: _scp_samples(counts, avm, interval, packed, differences),
        7: struct.pack("<BBHH", 1, 0, 1034, 1034)
        + struct.pack("<5H", 100, 210, 100 + ecg.pr_ms, 100 + ecg.pr_ms + ecg.qrs_ms, 100 + ecg.pr_ms + ecg.qt_ms)
        + struct.pack("<3h", ecg.p_axis, ecg.qrs_axis, ecg.t_axis),
    }
    built, place, pointers = [], 7 + 16 + 10 * 12, []
    for number in range(1, 12):
        content = sections.get(number, b"")
        if content:
            content += b"\0" * (len(content) % 2)
            head = struct.pack("<HIBB6x", number, 16 + len(content), 20, 20)
            whole = struct.pack("<H", binascii.crc_hqx(head + content, 0xFFFF)) + head + content
            built.append(whole)
            pointers.append(struct.pack("<HII", number, len(whole), place))
            place += len(whole)
        else:
            pointers.append(struct.pack("<HII", number, 0, 0))
    zero = struct.pack("<HII", 0, 16 + 120, 7) + b"".join(pointers)
    head = struct.pack("<HIBB", 0, 16 + 120, 20, 20) + b"SCPECG"
    built.insert(0, struct.pack("<H", binascii.crc_hqx(head + zero, 0xFFFF)) + head + zero)
    record = struct.pack("<I", 6 + sum(map(len, built))) + b"".join(built)
    path.write_bytes(struct.pack("<H", binascii.crc_hqx(record, 0xFFFF)) + record)


def _scp_patient(ecg: Ecg) -> bytes:
    when = ecg.acquired
    tags = [
        (0, FAMILY.encode() + b"\0"),
        (1, GIVEN.encode() + b"\0"),
        (2, ecg.patient_id.encode() + b"\0"),
        (4, struct.pack("<HB", 72, 1)),
        (5, struct.pack("<HBB", BIRTH.year, BIRTH.month, BIRTH.day)),
        (8, b"\2"),
        (13, COMMENT.encode() + b"\0"),
        (25, struct.pack("<HBB", when.year, when.month, when.day)),
        (26, struct.pack("<BBB", when.hour, when.minute, when.second)),
        (27, struct.pack("<H", 5)),
        (28, struct.pack("<H", 150)),
        (30, COMMENT.encode() + b"\0"),
    ]
    return b"".join(struct.pack("<BH", tag, len(value)) + value for tag, value in tags) + b"\xff\0\0"


def _scp_samples(counts: np.ndarray, avm: int, interval: int, packed: bool, differences: int) -> bytes:
    rows = [_scp_row(row, packed, differences) for row in counts]
    sizes = b"".join(struct.pack("<H", len(row)) for row in rows)
    return struct.pack("<HHBB", avm, interval, differences, 0) + sizes + b"".join(rows)


def _scp_row(row: np.ndarray, packed: bool, differences: int) -> bytes:
    values = row.copy()
    if differences == 1:
        values[1:] = row[1:] - row[:-1]
    elif differences == 2:
        values[2:] = row[2:] - 2 * row[1:-1] + row[:-2]
    if not packed:
        return values.astype("<i2").tobytes()
    bits = "".join(map(_huffman, values.tolist()))
    bits += "0" * (-len(bits) % 16)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _huffman(value: int) -> str:
    if value == 0:
        return "0"
    if abs(value) <= 8:
        return "1" * abs(value) + "0" + ("1" if value < 0 else "0")
    if -128 <= value <= 127:
        return "1111111110" + f"{value & 0xFF:08b}"
    return "1111111111" + f"{value & 0xFFFF:016b}"


# ---- ISHNE -----------------------------------------------------------------------------------------------------------

ISHNE_CODES = {"I": 5, "II": 6, "III": 7, "aVR": 8, "aVL": 9, "aVF": 10, **{f"V{k}": k + 10 for k in range(1, 7)}}


def ishne(ecg: Ecg, path: Path, *, resolution: bool = True) -> None:
    """ISHNE Holter file with a comment block."""
    comment = COMMENT.encode()
    lead_codes = [ISHNE_CODES[name] for name in ecg.leads]
    absent = [-9] * (12 - len(lead_codes))
    when = ecg.acquired
    fixed = struct.pack("<iiiih", len(comment), ecg.counts.shape[1], 522, 522 + len(comment), 1)
    fixed += (
        GIVEN.encode().ljust(40, b"\0") + FAMILY.encode().ljust(40, b"\0") + ecg.patient_id.encode().ljust(20, b"\0")
    )
    fixed += struct.pack("<hh", 2, 1) + struct.pack("<3h", BIRTH.day, BIRTH.month, BIRTH.year)
    fixed += struct.pack("<3h", when.day, when.month, when.year) * 2
    fixed += struct.pack("<3h", when.hour, when.minute, when.second)
    fixed += struct.pack("<h", len(lead_codes)) + struct.pack("<12h", *lead_codes, *absent)
    fixed += struct.pack("<12h", *([1] * len(lead_codes)), *absent)
    step_nv = round(ecg.step_uv * 1000) if resolution else 0
    fixed += struct.pack("<12h", *([step_nv] * len(lead_codes)), *absent)
    fixed += struct.pack("<h", 0) + b"digital".ljust(40, b"\0") + struct.pack("<h", ecg.rate_hz)
    fixed = fixed.ljust(512, b"\0") + comment
    crc = struct.pack("<H", binascii.crc_hqx(fixed, 0xFFFF))
    path.write_bytes(b"ISHNE1.0" + crc + fixed + ecg.counts.T.astype("<i2").tobytes())


# ---- MFER ------------------------------------------------------------------------------------------------------------


def mfer(ecg: Ecg, path: Path, *, little: bool = False, sensitivity: bool = True, null: int | None = None) -> None:
    """MFER (ISO 22077-1) of one frame: for each second the samples of each channel in turn."""
    order = "<" if little else ">"
    n_seconds, rate = ecg.counts.shape[1] // ecg.rate_hz, ecg.rate_hz
    out = _tlv(0x40, b"MFR Standard 12 leads ECG".ljust(32))
    out += _tlv(0x01, b"\1" if little else b"\0") + _tlv(0x02, b"\1\5\0")
    out += _tlv(0x81, f"{FAMILY}^^{GIVEN}".encode()) + _tlv(0x82, ecg.patient_id.encode())
    out += _tlv(0x83, struct.pack(f"{order}BHHBB", 72, 26500, BIRTH.year, BIRTH.month, BIRTH.day)) + _tlv(0x84, b"\2")
    when = ecg.acquired
    out += _tlv(0x85, struct.pack(f"{order}H5B", when.year, when.month, when.day, when.hour, when.minute, when.second))
    out += (
        _tlv(0x16, COMMENT.encode())
        + _tlv(0x87, ecg.test_id.encode())
        + _tlv(0x11, b"HPF=0.05")
        + _tlv(0x11, b"LPF=150")
    )
    out += _tlv(0x08, struct.pack(f"{order}H", 1))
    out += _tlv(0x0B, struct.pack(f"{order}Bbh", 1, -6, 0)[:2] + struct.pack(f"{order}i", round(1e6 / rate)))
    if sensitivity:
        out += _tlv(0x0C, struct.pack("Bb", 0, -9) + struct.pack(f"{order}h", round(ecg.step_uv * 1000)))
    if null is not None:
        out += _tlv(0x12, struct.pack(f"{order}h", null))
    out += _tlv(0x0A, b"\0") + _tlv(0x04, struct.pack(f"{order}I", rate)) + _tlv(0x05, bytes([len(ecg.leads)]))
    out += _tlv(0x06, struct.pack(f"{order}I", n_seconds))
    for k, name in enumerate(ecg.leads):
        out += bytes([0x3F, k]) + _length(4) + _tlv(0x09, struct.pack(f"{order}H", SCP_CODES[name]))
    seconds = ecg.counts[:, : n_seconds * rate].reshape(len(ecg.leads), n_seconds, rate).transpose(1, 0, 2)
    out += _tlv(0x1E, seconds.astype(f"{order}i2").tobytes()) + b"\x80\0"
    path.write_bytes(out)


def _tlv(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + _length(len(content)) + content


def _length(n: int) -> bytes:
    return bytes([n]) if n < 128 else b"\x84" + struct.pack(">I", n)
