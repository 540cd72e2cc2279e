"""The contract of reading a hospital's files, line for line."""

import base64
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from cache import open_records, open_signals
from cache.signals import LEADS
from stages.readers.files import known_format, read_ecg
from tests.hospital import write_binary, write_xml
from tests.hospital.cases import ONE_EACH
from tests.hospital.ecgs import EIGHT, beats_uv, ecg_of
from tests.hospital.reading import read_uv, refused, written
from tests.ingesting import ingest

# ---- the original rhythm, never the median beat ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ONE_EACH.values(), ids=ONE_EACH)
def test_the_rhythm_is_read_and_never_the_mean_beat(tmp_path, way):
    """Every writer that can puts a mean beat of another height into the file, most before the rhythm."""
    ecg = ecg_of(beats_uv(way.rate_hz), way.step_uv, way.rate_hz, way.leads)
    way.write(ecg, tmp_path / "file")
    found = read_uv(tmp_path / "file")[[LEADS.index(lead) for lead in way.leads]]
    assert found.shape[1] == ecg.counts.shape[1]
    assert np.abs(found - ecg.signals_uv).max() <= 0.501


@pytest.mark.parametrize("label", [None, "", "RHYTHM", "anything"])
def test_the_original_group_of_dicom_is_read_whatever_its_label_and_place(tmp_path, label):
    ecg = ecg_of(beats_uv(), 5.0)
    rhythm = write_binary.dicom_group(ecg, ecg.counts, "ORIGINAL", label)
    median = write_binary.dicom_group(ecg, ecg.median, "DERIVED", None)
    for groups in ([median, rhythm], [rhythm, median]):
        path = written(tmp_path, write_binary.dicom, ecg, groups=groups)
        assert np.abs(read_uv(path) - ecg.signals_uv).max() < 0.01


def test_a_group_that_does_not_say_whether_it_is_original_is_read_unless_its_label_says_median(tmp_path):
    ecg = ecg_of(beats_uv(), 5.0)
    rhythm = write_binary.dicom_group(ecg, ecg.counts, None, "RHYTHM")
    median = write_binary.dicom_group(ecg, ecg.median, None, "MEDIAN BEAT")
    path = written(tmp_path, write_binary.dicom, ecg, groups=[median, rhythm])
    assert np.abs(read_uv(path) - ecg.signals_uv).max() < 0.01
    derived = write_binary.dicom_group(ecg, ecg.median, "DERIVED", "RHYTHM")
    assert "all are derived" in refused(written(tmp_path, write_binary.dicom, ecg, groups=[derived]))


def test_groups_that_were_recorded_one_after_another_lie_where_they_were(tmp_path):
    """Four groups of three leads and 2.5 s each: the leads of a later group are missing before it."""
    ecg = ecg_of(beats_uv(), 5.0)
    groups = []
    for k in range(4):
        leads = LEADS[3 * k : 3 * k + 3]
        part = replace(ecg, leads=leads)
        group = write_binary.dicom_group(
            part, ecg.counts[3 * k : 3 * k + 3, 1250 * k : 1250 * (k + 1)], "ORIGINAL", None
        )
        group.MultiplexGroupTimeOffset = 2500.0 * k
        groups.append(group)
    found = read_uv(written(tmp_path, write_binary.dicom, ecg, groups=groups))
    for k in range(4):
        rows, span = slice(3 * k, 3 * k + 3), slice(1250 * k, 1250 * (k + 1))
        assert np.abs(found[rows, span] - ecg.signals_uv[rows, span]).max() < 0.01
        assert np.isfinite(found[rows]).sum() == 3 * 1250


# ---- physical units --------------------------------------------------------------------------------------------------

UNSCALED = {
    "muse": partial(write_xml.muse, units=None),
    "muse, no voltage": partial(write_xml.muse, units="BARLEYCORNS"),
    "cardiosoft": partial(write_xml.cardiosoft, unit="mmPerLsb"),
    "philips": partial(write_xml.philips, resolution=False, version="1.03"),
    "mortara": partial(write_xml.mortara, units_per_mv=None),
    "aecg": partial(write_xml.aecg, unit=""),
    "dicom": None,
    "edf": partial(write_binary.edf, unit=""),
    "ishne": partial(write_binary.ishne, resolution=False),
    "mfer": partial(write_binary.mfer, sensitivity=False),
}


@pytest.mark.parametrize("name", UNSCALED)
def test_a_file_whose_scale_is_not_known_is_bad_and_says_so(tmp_path, name):
    ecg = ecg_of(beats_uv(), 5.0)
    if name == "dicom":
        group = write_binary.dicom_group(ecg, ecg.counts, sensitivity=False)
        path = written(tmp_path, write_binary.dicom, ecg, groups=[group])
    else:
        path = written(tmp_path, UNSCALED[name], ecg)
    assert "scale" in refused(path)
    with_good = tmp_path / "good"
    write_xml.muse(ecg_of(beats_uv(), 4.88, 500, EIGHT, test_id="good"), with_good)
    ingest("files", tmp_path, records_path=tmp_path / "out/records.parquet", signals_path=tmp_path / "out/signals.zarr")
    bad = (tmp_path / "out" / "bad_records.csv").read_text().splitlines()
    assert len(bad) == 2
    assert "the scale of lead I is not known" in bad[1]


def test_scp_without_a_multiplier_is_bad(tmp_path):
    path = written(tmp_path, write_binary.scp, ecg_of(beats_uv(), 0.0001))
    assert "scale" in refused(path)


@pytest.mark.parametrize(("correction", "baseline"), [(1.0, 0.0), (0.5, 0.0), (2.0, 250.0), (None, -120.0)])
@pytest.mark.parametrize("unit", ["uV", "mV"])
def test_dicom_value_is_sensitivity_times_correction_plus_baseline(tmp_path, correction, baseline, unit):
    ecg = ecg_of(beats_uv(), 5.0)
    shown = baseline * (1e-3 if unit == "mV" else 1.0)
    group = write_binary.dicom_group(ecg, ecg.counts, correction=correction, baseline=shown, unit=unit)
    path = written(tmp_path, write_binary.dicom, ecg, groups=[group])
    assert np.abs(read_uv(path) - (ecg.signals_uv + baseline)).max() < 0.01


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]
)
def test_dicom_in_every_transfer_syntax(tmp_path, syntax):
    """Implicit, explicit, deflated, and the high byte first (whose samples are turned, too)."""
    ecg = ecg_of(beats_uv(), 5.0)
    group = write_binary.dicom_group(ecg, ecg.counts)
    if syntax.endswith("1.2.2"):
        group.WaveformData = ecg.counts.T.astype(">i2").tobytes()
    path = written(tmp_path, write_binary.dicom, ecg, groups=[group], syntax=syntax)
    assert np.abs(read_uv(path) - ecg.signals_uv).max() < 0.01


def test_dicom_without_the_preamble(tmp_path):
    ecg = ecg_of(beats_uv(), 5.0)
    path = written(tmp_path, write_binary.dicom, ecg)
    content = path.read_bytes()
    path.write_bytes(content[132:])
    assert known_format(str(tmp_path), "file").name == "DICOM ECG"
    assert np.abs(read_uv(path) - ecg.signals_uv).max() < 0.01


@pytest.mark.parametrize(("interpretation", "dtype", "bits"), [("SB", "i1", 8), ("UB", "u1", 8), ("US", "<u2", 16)])
def test_dicom_of_other_samples(tmp_path, interpretation, dtype, bits):
    ecg = ecg_of(beats_uv(), 20.0)
    counts = ecg.counts - (ecg.counts.min() if dtype != "i1" else 0)
    offset = ecg.counts.min() if dtype != "i1" else 0
    ecg = replace(
        ecg, counts=np.clip(counts, 0 if dtype != "i1" else -128, 255 if bits == 8 and dtype != "i1" else 127)
    )
    group = write_binary.dicom_group(ecg, ecg.counts, baseline=float(offset * 20))
    group.WaveformSampleInterpretation, group.WaveformBitsAllocated = interpretation, bits
    group.add_new("WaveformData", "OB" if bits == 8 else "OW", ecg.counts.T.astype(dtype).tobytes())
    path = written(tmp_path, write_binary.dicom, ecg, groups=[group])
    assert np.abs(read_uv(path) - (ecg.signals_uv + offset * 20)).max() < 0.01


def test_padding_of_dicom_is_missing(tmp_path):
    ecg = ecg_of(beats_uv(), 5.0)
    counts = ecg.counts.copy()
    counts[1, 100:200] = counts[7, 4000:] = -32768
    group = write_binary.dicom_group(ecg, counts, padding=-32768)
    found = read_uv(written(tmp_path, write_binary.dicom, ecg, groups=[group]))
    assert np.array_equal(np.isnan(found), counts == -32768)


def test_null_of_mfer_and_lead_faults_of_ishne_are_missing(tmp_path):
    ecg = ecg_of(beats_uv(), 5.0)
    counts = ecg.counts.copy()
    counts[2, 50:90] = -32768
    holed = replace(ecg, counts=counts)
    for write in (partial(write_binary.mfer, null=-32768), write_binary.ishne):
        found = read_uv(written(tmp_path, write, holed))
        assert np.array_equal(np.isnan(found), counts == -32768)


# ---- leads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", [str, str.lower, str.upper, "Lead {}".format, "ECG {}".format, "{} (mV)".format])
def test_leads_are_known_by_code_or_by_name_in_any_spelling(tmp_path, spelling):
    ecg = ecg_of(beats_uv(), 5.0)
    for write in (write_xml.muse, write_xml.cardiosoft, write_xml.mortara):
        path = written(tmp_path, write, replace(ecg, leads=tuple(map(spelling, LEADS))))
        assert np.abs(read_uv(path) - ecg.signals_uv).max() < 0.01
    for scheme in ("MDC", "SCPECG", "other"):
        group = write_binary.dicom_group(ecg, ecg.counts, scheme="SCPECG" if scheme == "other" else scheme)
        for channel, lead in zip(group.ChannelDefinitionSequence, LEADS, strict=True):
            source = channel.ChannelSourceSequence[0]
            source.CodeMeaning = spelling(lead)
            if scheme == "other":
                source.CodeValue = "X-1"
        path = written(tmp_path, write_binary.dicom, ecg, groups=[group])
        assert np.abs(read_uv(path) - ecg.signals_uv).max() < 0.01


def test_leads_in_another_order_and_names_of_ones_own_are_placed(tmp_path):
    ecg = ecg_of(beats_uv(), 5.0)
    turned = replace(ecg, counts=ecg.counts[::-1], leads=LEADS[::-1], median=ecg.median[::-1])
    for way in ONE_EACH.values():
        if way.name not in ("Philips Sierra XML", "EDF/EDF+"):
            path = written(tmp_path, way.write, turned)
            assert np.abs(read_uv(path) - ecg.signals_uv).max() < 0.01, way.name
    named = replace(ecg, leads=("CH1", *LEADS[1:]))
    path = written(tmp_path, write_xml.cardiosoft, named)
    assert np.isnan(read_uv(path)[0]).all()
    assert np.abs(read_uv(path, lead_names=(("CH1", "I"),)) - ecg.signals_uv).max() < 0.01


@pytest.mark.parametrize("name", ["GE MUSE XML", "DICOM ECG", "ISHNE Holter", "SCP-ECG", "HL7 aECG", "MFER"])
def test_eight_leads_by_design_get_the_other_four_marked_without_being_asked(tmp_path, name):
    ecg = ecg_of(beats_uv(), 5.0, 500, EIGHT)
    (tmp_path / "in").mkdir()
    ONE_EACH[name].write(ecg, tmp_path / "in" / "file")
    ingest("files", tmp_path / "in", records_path=tmp_path / "r.parquet", signals_path=tmp_path / "s.zarr")
    frame = open_records(tmp_path / "r.parquet")
    assert list(frame["derived_leads"][0]) == ["III", "aVR", "aVL", "aVF"]
    assert list(frame["missing_leads"][0]) == ["III", "aVR", "aVL", "aVF"]
    row = open_signals(tmp_path / "s.zarr").read_uv(slice(0, 1))[0].astype(np.float64)
    one, two = row[0], row[1]
    for lead, expected in {
        "III": two - one,
        "aVR": -(one + two) / 2,
        "aVL": one - two / 2,
        "aVF": two - one / 2,
    }.items():
        assert np.abs(row[LEADS.index(lead)] - expected).max() <= 0.5


def test_a_file_of_other_leads_gets_none_without_being_asked(tmp_path):
    ecg = ecg_of(beats_uv(), 5.0, 500, ("I", "II", "V1"))
    path = written(tmp_path, write_xml.muse, ecg)
    assert np.isnan(read_uv(path)[2]).all()
    assert np.isfinite(read_uv(path, derive_leads=True)[2]).all()


# ---- rates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-1, 0, 1, 2])
def test_the_rate_of_muse_is_base_times_ten_to_the_exponent(tmp_path, exponent):
    ecg = ecg_of(beats_uv(250), 5.0, 250, EIGHT)
    assert read_ecg(written(tmp_path, write_xml.muse, ecg, exponent=exponent)).rate_hz == 250.0


def test_leads_of_another_rate_are_resampled_and_noted(tmp_path):
    """An EDF file whose second lead has half the rate."""
    ecg = ecg_of(beats_uv(250), write_binary.edf_step_uv(5.0), 250, ("I", "II"))
    path = written(tmp_path, write_binary.edf, ecg)
    content = bytearray(path.read_bytes())
    heads = 256 * 4
    place = 256 + 216 * 3 + 8
    content[place : place + 8] = b"125     "
    body = bytearray()
    size = 2 * (250 + 250) + 60
    for start in range(heads, len(content), size):
        block = content[start : start + size]
        second = np.frombuffer(bytes(block[500:1000]), dtype="<i2")[::2]
        body += block[:500] + second.tobytes() + block[1000:]
    path.write_bytes(bytes(content[:heads] + body))
    one = read_ecg(path)
    assert one.rate_hz == 250.0
    assert any("lower rate are resampled to 250 Hz: II" in warning for warning in one.warnings)
    assert np.abs(one.signals_mv[1, 100:-100] - ecg.signals_uv[1, 100:-100] / 1000).max() < 0.2


# ---- Philips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.03", "1.04", "1.04.01", "1.04.02"])
@pytest.mark.parametrize("xli", [True, False])
@pytest.mark.parametrize("counted", [True, False], ids=["in the duration", "behind it"])
def test_limb_leads_of_philips_are_rebuilt_and_a_pulse_behind_is_cut(tmp_path, version, xli, counted):
    ecg = ecg_of(beats_uv(), 5.0)
    path = written(tmp_path, write_xml.philips, ecg, version=version, xli=xli, pulse=400)
    if counted:
        content = path.read_bytes().decode("utf-16")
        path.write_bytes(content.replace('durationperchannel="10000"', 'durationperchannel="10800"').encode("utf-16"))
    found = read_uv(path, seconds=None)
    assert found.shape == (12, 5000)
    assert np.abs(found - ecg.signals_uv).max() < 0.01


def test_a_record_without_a_pulse_is_not_cut(tmp_path):
    assert read_uv(written(tmp_path, write_xml.philips), seconds=None).shape == (12, 5000)


def test_samples_that_leads_cannot_share_are_refused(tmp_path):
    path = written(tmp_path, write_xml.philips, xli=False)
    content = path.read_bytes().decode("utf-16")
    start = content.index("\n", content.index("<parsedwaveforms")) + 1
    samples = base64.b64decode(content[start : content.index("\n", start)])
    longer = base64.b64encode(samples + b"\0\0").decode()
    path.write_bytes((content[:start] + longer + content[content.index("\n", start) :]).encode("utf-16"))
    assert "cannot share" in refused(path)


# ---- gaps, names, one bad file ---------------------------------------------------------------------------------------


def test_gaps_of_edf_d_stay_gaps(tmp_path):
    ecg = ecg_of(beats_uv(), write_binary.edf_step_uv(5.0))
    found = read_uv(written(tmp_path, write_binary.edf, ecg, gap=True), seconds=None)
    assert found.shape == (12, 6000)
    assert np.isnan(found[:, 1500:2500]).all()
    assert np.abs(found[:, :1500] - ecg.signals_uv[:, :1500]).max() < 0.01
    assert np.abs(found[:, 2500:] - ecg.signals_uv[:, 1500:]).max() < 0.01
