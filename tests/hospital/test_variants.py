"""Variants of the formats: the rarer ones that are read, and those that are not, each with the reason."""

import struct

import numpy as np
import pytest

from stages.readers.files import known_format, read_ecg
from tests.hospital import write_binary, write_xml
from tests.hospital.ecgs import beats_uv, ecg_of
from tests.hospital.reading import read_uv, refused, written

# ---- read ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ["behind", "before", ""])
def test_the_full_disclosure_of_an_exercise_test_is_read(tmp_path, count):
    ecg = ecg_of(beats_uv(seconds=30.0), 5.0)
    path = written(tmp_path, write_xml.cardiosoft_exercise, ecg, count=count)
    found = read_uv(path, seconds=None)
    assert found.shape == (12, 15_000)
    assert np.abs(found - ecg.signals_uv).max() < 0.01
    assert "the full disclosure of an exercise test" in read_ecg(path).warnings


def test_a_full_disclosure_that_is_cut_short_is_bad(tmp_path):
    ecg = ecg_of(beats_uv(seconds=2.0), 5.0)
    path = written(tmp_path, write_xml.cardiosoft_exercise, ecg)
    text = path.read_text("latin-1")
    start, end = text.index("<FullDisclosureData>") + 20, text.index("<SampleCountTotal>")
    shortened = ",".join(text[start:end].split(",")[:996])
    path.write_text(f"{text[:start]}{shortened},{text[end:]}", "latin-1")
    assert "cut short: 996 of 1000" in refused(path)
    one_less = ",".join(text[start:end].split(",")[:11_999])
    path.write_text(f"{text[:start]}{one_less},{text[end:]}", "latin-1")
    assert "samples and leads do not go together" in refused(path)


def test_strip_data_within_a_strip_is_read(tmp_path):
    ecg = ecg_of(beats_uv(), 5.0)
    path = written(tmp_path, write_xml.cardiosoft, ecg)
    text = path.read_text("latin-1").replace("<StripData>", "<Strip><StripData>")
    path.write_text(text.replace("</StripData>", "</StripData></Strip>"), "latin-1")
    assert np.abs(read_uv(path) - ecg.signals_uv).max() < 0.01


def test_dicom_of_32_bits_is_read(tmp_path):
    """The storage class of 32-bit ECGs holds samples of the kind SL."""
    ecg = ecg_of(beats_uv(), 0.25)
    group = write_binary.dicom_group(ecg, ecg.counts)
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 32, "SL"
    group.add_new("WaveformData", "OB", ecg.counts.T.astype("<i4").tobytes())
    path = written(tmp_path, write_binary.dicom, ecg, groups=[group])
    assert np.abs(read_uv(path) - ecg.signals_uv).max() < 0.51


# ---- not read --------------------------------------------------------------------------------------------------------


def changed(path, before, after):
    """Put `after` in the place of the only `before`."""
    content = path.read_bytes()
    if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = content.decode("utf-16")
        assert text.count(before) == 1
        path.write_bytes(text.replace(before, after).encode("utf-16"))
        return
    before, after = (one.encode("latin-1") if isinstance(one, str) else one for one in (before, after))
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))


@pytest.mark.parametrize(
    ("write", "before", "after", "says"),
    [
        (write_xml.philips, 'compression="XLI"', 'compression="LZMA"', "Compression unsupported"),
        (write_xml.philips, "<documentversion>1.04<", "<documentversion>2.0<", "unsupported"),
        (write_binary.mfer, b"\x0a\x01\0\x04", b"\x0a\x01\x09\x04", "AHA compressed data"),
        (write_binary.mfer, b"\x0a\x01\0\x04", b"\x0e\x06\0\1\0\0\0\0\x0a\x01\0\x04", "compressed content"),
    ],
    ids=["philips, other packing", "philips, other version", "mfer, AHA", "mfer, packed"],
)
def test_variants_that_are_not_read_say_so(tmp_path, write, before, after, says):
    path = written(tmp_path, write, ecg_of(beats_uv(), 5.0))
    changed(path, before, after)
    assert says in refused(path)


def test_mortara_of_other_bits_says_so(tmp_path):
    path = written(tmp_path, write_xml.mortara, ecg_of(beats_uv(), 2.5))
    path.write_text(path.read_text().replace('<CHANNEL OFFSET="0" BITS="16"', '<CHANNEL OFFSET="0" BITS="8"'))
    assert "only 16-bit" in refused(path)


def with_crc(section):
    """Put the right CRC before a section of SCP-ECG without one."""
    return struct.pack("<H", write_binary.binascii.crc_hqx(section, 0xFFFF)) + section


def section_of(content, number):
    """Return where a section of SCP-ECG begins, and its length."""
    _, size, start = struct.unpack_from("<HII", content, 6 + 16 + 10 * number)
    return start - 1, size


def test_scp_of_bimodal_compression_says_so(tmp_path):
    """Samples between beats at a quarter of the rate: the interval of section 6 is four times that of section 5."""
    path = written(tmp_path, write_binary.scp, ecg_of(beats_uv(), 5.0))
    content = bytearray(path.read_bytes())
    start, size = section_of(content, 6)
    content[start + 16 + 5] = 1
    content[start + 16 + 2 : start + 16 + 4] = struct.pack("<H", 8000)
    content[start : start + size] = with_crc(bytes(content[start + 2 : start + size]))
    content[:2] = struct.pack("<H", write_binary.binascii.crc_hqx(bytes(content[2:]), 0xFFFF))
    path.write_bytes(bytes(content))
    assert "bimodal compression" in refused(path)


def test_scp_of_long_recordings_says_so(tmp_path):
    """Section 12 in the place of section 6."""
    path = written(tmp_path, write_binary.scp, ecg_of(beats_uv(), 5.0))
    content = bytearray(path.read_bytes())
    place = 6 + 16 + 10 * 6
    content[place : place + 2] = struct.pack("<H", 12)
    start, size = section_of(content, 6)
    content[start + 2 : start + 4] = struct.pack("<H", 12)
    content[start : start + size] = with_crc(bytes(content[start + 2 : start + size]))
    zero_size = 16 + 120
    content[6 : 6 + zero_size] = with_crc(bytes(content[8 : 6 + zero_size]))
    content[:2] = struct.pack("<H", write_binary.binascii.crc_hqx(bytes(content[2:]), 0xFFFF))
    path.write_bytes(bytes(content))
    assert "Section 12" in refused(path)


def test_bdf_says_so(tmp_path):
    path = written(tmp_path, write_binary.edf, ecg_of(beats_uv(), write_binary.edf_step_uv(5.0)))
    content = path.read_bytes()
    path.write_bytes(b"\xffBIOSEMI" + content[8:])
    assert known_format(str(tmp_path), path.name).name == "EDF/EDF+"
    assert "24-bit BioSemi" in refused(path)


@pytest.mark.parametrize(("kind", "says"), [("MB", "kind MB (mu-law)"), ("AB", "kind AB (A-law)"), ("XX", "kind XX")])
def test_dicom_of_companded_samples_says_so(tmp_path, kind, says):
    ecg = ecg_of(beats_uv(), 5.0)
    group = write_binary.dicom_group(ecg, ecg.counts)
    group.WaveformSampleInterpretation = kind
    assert says in refused(written(tmp_path, write_binary.dicom, ecg, groups=[group]))


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.9.1.1", "1.2.840.10008.5.1.4.1.1.104.1"])
def test_dicom_without_a_waveform_says_so(tmp_path, sop_class):
    import pydicom

    path = written(tmp_path, write_binary.dicom, ecg_of(beats_uv(), 5.0))
    data = pydicom.dcmread(path)
    del data.WaveformSequence
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
    data.save_as(path)
    assert "a report or picture of an ECG cannot be read" in refused(path)


def test_xml_of_only_mean_beats_says_so(tmp_path):
    ecg = ecg_of(beats_uv(), 5.0)
    path = written(tmp_path, write_xml.cardiosoft, ecg)
    text = path.read_text("latin-1")
    path.write_text(text[: text.index("<StripData>")] + "</CardiologyXML>", "latin-1")
    assert "only mean beats" in refused(path)
    path = written(tmp_path, write_xml.muse, ecg)
    path.write_text(path.read_text("latin-1").replace(">Rhythm<", ">Median<"), "latin-1")
    assert "No rhythm waveform" in refused(path)
