"""Readers of MFER and SCP-ECG for the tests, from the standards alone: no code of the product or its libraries.

MFER: MFER Part 1 (ISO 22077-1), definitions of tag, length and value. SCP-ECG: EN 1064, sections 2 to 6, the default
Huffman table (section 2 holds 19999). Plain and slow on purpose: one loop a rule.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

LEAD_OF_CODE = {1: "I", 2: "II", **{k + 2: f"V{k}" for k in range(1, 7)}, 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"}
"""The same numbers in both standards."""


@dataclass
class Waves:
    """What a file says: microvolts by lead, NaN where it says null; rate in Hz."""

    rate_hz: float
    uv: dict[str, np.ndarray] = field(default_factory=dict)


# ---- MFER ------------------------------------------------------------------------------------------------------------


def mfer(path: Path) -> Waves:
    """Read a file of one frame: SEQ times, for each of CHN channels, BLK samples."""
    content = path.read_bytes()
    order, facts, channels, place = "big", {}, {}, 0
    while place < len(content) and content[place] != 0x80:
        tag, place = content[place], place + 1
        channel = content[place] if tag == 0x3F else None
        place += tag == 0x3F
        size, place = _ber_length(content, place)
        value, place = content[place : place + size], place + size
        if tag == 0x01:
            order = "little" if value == b"\x01" else "big"
        elif channel is not None:
            inner_size, start = _ber_length(value, 1)
            assert value[0] == 0x09  # the only definition of one channel that is looked for
            channels[channel] = int.from_bytes(value[start : start + inner_size], order)
        else:
            facts[tag] = value

    def number(tag: int, signed: bool = False) -> int:
        return int.from_bytes(facts[tag], order, signed=signed)

    def scaled(tag: int) -> float:
        exponent = struct.unpack_from("b", facts[tag], 1)[0]
        return int.from_bytes(facts[tag][2:], order, signed=True) * 10.0**exponent

    assert facts[0x0A] == b"\0"  # signed numbers of 16 bits
    assert (facts[0x0B][0], facts[0x0C][0]) == (1, 0)  # seconds a sample; volts a count
    size, n_channels, n_blocks = number(0x04), number(0x05), number(0x06)
    samples = struct.unpack(f"{'<' if order == 'little' else '>'}{len(facts[0x1E]) // 2}h", facts[0x1E])
    rows = [[] for _ in range(n_channels)]
    for block in range(n_blocks):
        for channel, row in enumerate(rows):
            start = (block * n_channels + channel) * size
            row.extend(samples[start : start + size])
    values = np.array(rows, dtype=np.float64)
    if 0x12 in facts:
        values[values == number(0x12, signed=True)] = np.nan
    waves = Waves(1 / scaled(0x0B))
    for channel, row in enumerate(values):
        waves.uv[LEAD_OF_CODE[channels[channel]]] = row * scaled(0x0C) * 1e6
    return waves


def _ber_length(content: bytes, place: int) -> tuple[int, int]:
    first = content[place]
    if first < 0x80:
        return first, place + 1
    size = first - 0x80
    return int.from_bytes(content[place + 1 : place + 1 + size], "big"), place + 1 + size


# ---- SCP-ECG ---------------------------------------------------------------------------------------------------------


def scp(path: Path) -> Waves:
    """Read section 6, and put back the beat of section 5 where section 4 says it was taken off."""
    content = path.read_bytes()
    sections = {}
    (length_of_pointers,) = struct.unpack_from("<I", content, 6 + 4)
    for place in range(6 + 16, 6 + length_of_pointers, 10):
        number, size, start = struct.unpack_from("<HII", content, place)
        sections[number] = content[start - 1 + 16 : start - 1 + size] if size else b""
    n_leads, flags = sections[3][0], sections[3][1]
    leads = [struct.unpack_from("<IIB", sections[3], 2 + 9 * k) for k in range(n_leads)]
    is_packed = bool(sections[2])
    assert not is_packed or struct.unpack_from("<H", sections[2])[0] == 19999
    n_samples = [last - first + 1 for first, last, _ in leads]
    step_nv, interval_us, rows = _scp_rows(sections[6], n_samples, is_packed)
    if flags & 1:
        beat_ms, fiducial, n_beats = struct.unpack_from("<HHH", sections[4])
        (beat_interval_us,) = struct.unpack_from("<H", sections[5], 2)
        size = round(beat_ms * 1000 / beat_interval_us)
        _, _, mean_beats = _scp_rows(sections[5], [size] * n_leads, is_packed)
        for k in range(n_beats):
            kind, first, peak, last = struct.unpack_from("<HIII", sections[4], 6 + 14 * k)
            assert kind == 0
            for row, beat in zip(rows, mean_beats, strict=True):
                for sample in range(first, last + 1):
                    row[sample - 1] += beat[sample - peak + fiducial - 1]
    waves = Waves(1e6 / interval_us)
    for (_, _, code), row in zip(leads, rows, strict=True):
        waves.uv[LEAD_OF_CODE[code]] = np.array(row, dtype=np.float64) * step_nv / 1000
    return waves


def _scp_rows(section: bytes, n_samples: list[int], is_packed: bool) -> tuple[int, int, list[list[int]]]:
    step_nv, interval_us, order, bimodal = struct.unpack_from("<HHBB", section)
    assert not bimodal
    sizes = struct.unpack_from(f"<{len(n_samples)}H", section, 6)
    place, rows = 6 + 2 * len(sizes), []
    for size, n in zip(sizes, n_samples, strict=True):
        packed, place = section[place : place + size], place + size
        row = _unpacked(packed, n) if is_packed else list(struct.unpack(f"<{n}h", packed[: 2 * n]))
        for k in range(order, n):
            row[k] += {0: 0, 1: row[k - 1], 2: 2 * row[k - 1] - row[k - 2]}[order]
        rows.append(row)
    return step_nv, interval_us, rows


def _unpacked(packed: bytes, n: int) -> list[int]:
    """Read codes of the default table: ones up to a zero are the value, a bit behind is its sign."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    place, values = 0, []
    while len(values) < n:
        if bits[place : place + 9] == "1" * 9:
            width = 16 if bits[place + 9] == "1" else 8
            value = int(bits[place + 10 : place + 10 + width], 2)
            values.append(value - (1 << width) if value >> (width - 1) else value)
            place += 10 + width
            continue
        ones = bits.index("0", place) - place
        is_negative = ones > 0 and bits[place + ones + 1] == "1"
        values.append(-ones if is_negative else ones)
        place += ones + 1 + (ones > 0)
    return values
