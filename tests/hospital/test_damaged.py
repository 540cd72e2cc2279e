"""Truncated and mutated files of every format: no crash, no hang, no wrong number; bombs are refused."""

import base64
import struct
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest

from cache.errors import InputError
from cache.signals import LEADS
from stages.readers.files import facts_of, read_ecg
from tests.hospital import write_binary, write_xml
from tests.hospital.cases import ONE_EACH, WAYS, Way
from tests.hospital.ecgs import EIGHT, FAMILY, SECRETS, beats_uv, ecg_of

LONGEST_S = 5.0
N_CUTS, N_MUTATED = 14, 40
FUZZED = {
    **ONE_EACH,
    "scp, Huffman": WAYS["scp, Huffman of second differences"],
    "cardiosoft, exercise test": Way("GE CardioSoft XML", write_xml.cardiosoft_exercise),
}


def looked_at(path):
    """Read a file and its facts as ingest does: returns the row, or None and the reason."""
    start = time.perf_counter()
    row, said = None, ["", ""]
    try:
        facts_of(str(path.parent), path.name)
    except InputError as error:
        said[0] = str(error)
    try:
        row = read_ecg(path).signals_mv
    except InputError as error:
        said[1] = str(error)
    assert not any(secret in reason for secret in SECRETS for reason in said), said
    assert not any(word in reason for word in ("\n", "unforeseen") for reason in said), said
    assert time.perf_counter() - start < LONGEST_S
    return row, said[1]


def short(way):
    return ecg_of(beats_uv(way.rate_hz, 2.0), way.step_uv, way.rate_hz, way.leads)


@pytest.mark.parametrize("way", FUZZED.values(), ids=FUZZED)
def test_a_truncated_file_is_bad_or_tells_no_other_numbers(tmp_path, way):
    ecg, path = short(way), tmp_path / "file"
    way.write(ecg, path)
    content = path.read_bytes()
    for cut in [*np.linspace(1, len(content) - 1, N_CUTS).astype(int).tolist(), len(content) - 2, len(content) - 16]:
        path.write_bytes(content[:cut])
        row, reason = looked_at(path)
        if row is None:
            assert reason
            continue
        found = row[[LEADS.index(lead) for lead in way.leads]].astype(np.float64) * 1000
        there = ecg.signals_uv[:, : found.shape[1]]
        assert found.shape[1] == there.shape[1], f"{way.name} cut at {cut} of {len(content)}"
        differing = np.isfinite(found) & (np.abs(found - there) > 0.51)
        assert not differing.any(), f"{way.name} cut at {cut} of {len(content)}"


@pytest.mark.parametrize("way", FUZZED.values(), ids=FUZZED)
def test_a_mutated_file_never_stops_a_run(tmp_path, way):
    ecg, path = short(way), tmp_path / "file"
    way.write(ecg, path)
    content = path.read_bytes()
    rng = np.random.default_rng(sum(way.name.encode()))
    for k in range(N_MUTATED):
        changed = bytearray(content)
        # Headers matter more than samples: half of the changes are in the first kilobyte.
        last = min(1024, len(content)) if k % 2 else len(content)
        for place in rng.integers(0, last, 1 + k % 6):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(bytes(changed))
        row, _ = looked_at(path)
        assert row is None or (row.dtype == np.float32 and row.shape[0] == 12)


@pytest.mark.parametrize("name", ["GE MUSE XML", "SCP-ECG", "scp, Huffman"])
def test_samples_that_contradict_their_checksum_are_refused(tmp_path, name):
    way = FUZZED[name]
    ecg, path = short(way), tmp_path / "file"
    way.write(ecg, path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"<WaveFormData>") + 40 if name == "GE MUSE XML" else len(content) - 400
    content[place] = ord("B") if content[place] != ord("B") else ord("C")
    path.write_bytes(bytes(content))
    row, reason = looked_at(path)
    assert row is None
    assert "mismatch" in reason


# ---- bombs -----------------------------------------------------------------------------------------------------------

LAUGHS = (
    "<!DOCTYPE {root} [<!ENTITY a 'ha'>"
    + "".join(f"<!ENTITY {b} '{('&' + a + ';') * 10}'>" for a, b in zip("abcdefghij", "bcdefghijk", strict=True))
    + "]>"
)
OUTSIDE = "<!DOCTYPE {root} [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>"
ROOTS = {
    "RestingECG": write_xml.muse,
    "CardiologyXML": write_xml.cardiosoft,
    "restingecgdata": write_xml.philips,
    "AnnotatedECG": write_xml.aecg,
    "ECG": write_xml.mortara,
}


@pytest.mark.parametrize("bomb", [LAUGHS, OUTSIDE], ids=["laughs", "outside"])
@pytest.mark.parametrize("root", ROOTS)
def test_entities_are_refused_with_one_line(tmp_path, root, bomb):
    path = tmp_path / "file"
    ROOTS[root](ecg_of(beats_uv(500, 2.0), 5.0, 500, LEADS), path)
    raw = path.read_bytes()
    text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1")
    text = text[text.index(f"<{root}") :].replace(FAMILY, "&k;" if bomb is LAUGHS else "&a;", 1)
    path.write_text(bomb.format(root=root) + text, encoding="utf-8")
    row, reason = looked_at(path)
    assert row is None
    assert "entities" in reason.lower()


@pytest.mark.parametrize("root", ROOTS)
def test_more_tags_than_any_ecg_has_are_refused(tmp_path, root):
    path = tmp_path / "file"
    ROOTS[root](ecg_of(beats_uv(500, 2.0), 5.0, 500, LEADS), path)
    raw = path.read_bytes()
    text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1")
    end = text.rindex(f"</{root}>")
    path.write_text(text[text.index(f"<{root}") : end] + "<a/>" * 500_000 + text[end:], encoding="utf-8")
    row, reason = looked_at(path)
    assert row is None
    assert "tags, more than" in reason


def test_a_file_larger_than_any_ecg_is_refused_before_it_is_read(tmp_path):
    for write, leads in ((write_xml.muse, EIGHT), (write_binary.scp, LEADS)):
        path = tmp_path / "file"
        write(ecg_of(beats_uv(500, 2.0), 5.0, 500, leads), path)
        with path.open("r+b") as file:
            file.truncate(5 << 30)  # a hole: it takes no room on the disk
        row, reason = looked_at(path)
        assert row is None
        assert "MB, more than the" in reason
        path.unlink()


def test_a_deflated_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.readers.formats.dicom.MAX_BYTES", 1 << 20)
    path = tmp_path / "file"
    write_binary.dicom(ecg_of(beats_uv(500, 2.0), 5.0), path, syntax="1.2.840.10008.1.2.1.99")
    assert looked_at(path)[0] is not None  # an honest one is read
    content = path.read_bytes()
    start = 132 + 12 + struct.unpack_from("<I", content, 140)[0]
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packing.compress(bytes(1 << 18)) for _ in range(20)) + packing.flush()
    path.write_bytes(content[:start] + bomb)
    row, reason = looked_at(path)
    assert row is None
    assert "unpacks to more than 1 MB" in reason


def test_packed_samples_that_unpack_to_more_than_is_stated_are_refused(tmp_path):
    """LZW codes that each stand for ever longer strings."""
    path = tmp_path / "file"
    write_xml.philips(ecg_of(beats_uv(500, 2.0), 5.0), path)
    text = path.read_bytes().decode("utf-16")
    codes = [65, *range(256, 1023), *[1022] * 50_000]
    bits = "".join(f"{code:010b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    packed = int(bits, 2).to_bytes(len(bits) // 8, "big")
    bomb = base64.b64encode((struct.pack("<ihh", len(packed), 0, 0) + packed) * 12).decode()
    start = text.index("\n", text.index("<parsedwaveforms")) + 1
    path.write_bytes((text[:start] + bomb + text[text.index("\n", start) :]).encode("utf-16"))
    row, reason = looked_at(path)
    assert row is None
    assert "unpacks to more than the 1000 samples" in reason


def test_lengths_that_the_file_cannot_hold_are_refused(tmp_path):
    """A few bytes may promise any number of samples: nothing is made of that size."""
    path = tmp_path / "file"
    ecg = ecg_of(beats_uv(500, 2.0), 5.0)
    for packed in (False, True):
        write_binary.scp(ecg, path, packed=packed)
        content = bytearray(path.read_bytes())
        lead = content.index(struct.pack("<IIB", 1, 1000, 1))
        content[lead + 4 : lead + 8] = struct.pack("<I", 2_000_000_000)
        path.write_bytes(bytes(content))
        row, reason = looked_at(path)
        assert row is None
        assert reason
    write_binary.mfer(ecg, path)
    content = path.read_bytes()
    channels = content.index(b"\x05\x01\x0c")
    path.write_bytes(content[:channels] + b"\x05\x04\x01\0\0\0" + content[channels + 3 :])
    row, reason = looked_at(path)
    assert "channels, more than 256" in reason
    path.write_bytes(content)
    for tag, value in ((b"\x04\x04", 500), (b"\x06\x04", 2)):
        content = path.read_bytes()
        place = content.index(tag + struct.pack(">I", value))
        path.write_bytes(content[: place + 2] + struct.pack(">I", 4_000_000_000) + content[place + 6 :])
        row, reason = looked_at(path)
        assert row is None
        path.write_bytes(content)
    group = write_binary.dicom_group(ecg, ecg.counts)
    group.NumberOfWaveformSamples = 4_000_000_000
    write_binary.dicom(ecg, path, [group])
    row, reason = looked_at(path)
    assert row is None
    assert "cut short" in reason
    write_binary.edf(replace(ecg, step_uv=write_binary.edf_step_uv(5.0)), path)
    content = path.read_bytes()
    path.write_bytes(content[:236] + b"99999999" + content[244:])
    row, reason = looked_at(path)
    assert row is None
    assert "incomplete" in reason
