"""Lead names as carts, DICOM, SCP-ECG, HL7 aECG, EDF and people write them, and channels that are no standard lead."""

import numpy as np
import pytest

from cache.errors import InputError
from cache.signals import LEADS
from stages.readers import keep_standard, read_wfdb
from stages.readers.lead_names import arrange, lead_columns, standard_lead
from tests.stages.wfdb_files import ecg_mv, write_record

TAIL = LEADS[3:]
SPELLINGS = {
    "Brazil, France": ("D1", "D2", "D3", *TAIL),
    "Roman with D": ("DI", "D II", "D-III", *TAIL),
    "numbered": ("Lead 1", "Lead 2", "Lead 3", *TAIL),
    "DICOM": (
        *("Lead I (Einthoven)", "Lead II", "Lead III", "aVR, augmented voltage, right", "aVL, augmented voltage, left"),
        *("aVF, augmented voltage, foot", "Lead V1", "Lead V2", "Lead V3", "Lead V4", "Lead V5", "Lead V6"),
    ),
    "unipolar": ("I", "II", "III", "VR", "VL", "VF", *LEADS[6:]),
    "C": (*LEADS[:6], "C1", "C2", "C3", "C4", "C5", "C6"),
    "EDF": tuple(f"ECG {name}" for name in LEADS),
    "underscores": tuple(f"ECG_{name}" for name in LEADS),
    "HL7 aECG": tuple(f"MDC_ECG_LEAD_{name.upper()}" for name in LEADS),
    "HL7 electrodes": tuple(f"MDC_ECG_ELEC_POTL_{name.upper()}" for name in LEADS),
    "units behind": tuple(f"{name} (mV)" for name in LEADS),
    "units joined": tuple(f"{name}_uV" for name in LEADS),
    "hyphens": tuple(f"Lead-{name}" for name in LEADS),
    "German": tuple(f"Ableitung {name}" for name in LEADS),
    "Portuguese": tuple(f"Derivação {name}" for name in LEADS),
    "Chinese": tuple(f"{name}导联" for name in LEADS),
    "leading zero": (*LEADS[:6], *(f"V0{k}" for k in range(1, 7))),
    "spaced": ("i", "ii", "iii", "a VR", "aV L", "a_V_F", "v 1", "V_2", "V.3", "V-4", " V5 ", "v6"),
    "Roman numerals of Unicode": ("\u2160", "\u2161", "\u2162", *TAIL),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_spelling_of_the_twelve_leads_is_read(kind):
    assert lead_columns(SPELLINGS[kind]) == [(k, k) for k in range(12)]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "MLII",
            "-aVR",
            "Lead -aVR",
            "ECG -I",
            "V3R",
            "V7",
            "V10",
            "V",
            "IV",
            "I-II",
            "V1-V2",
            "ECG",
            "ECG1",
            "ECG 2",
        ),
        *("PLETH", "RESP", "vx", "CH1", "1", "C", "C7", "D4", "Lead 4", "aVX", "III'", "", "MCL1", "EEG C3", "MV"),
    ],
)
def test_what_is_no_standard_lead_is_none(name):
    assert standard_lead(name) is None


def test_c_names_are_chest_leads_only_where_nothing_speaks_against_it():
    chest = ("C1", "C2", "C3", "C4", "C5", "C6")
    assert len(arrange(("I", *chest)).columns) == 7
    assert arrange(("ECG II", "C3", "C4")).others == ("C3", "C4")  # electrodes of a sleep recording
    assert arrange((*chest, "Cz", "Fz", "O1", "ECG I")).others == (*chest, "Cz", "Fz", "O1")
    assert arrange((*chest, "V1")).others == chest


def test_numbers_that_go_on_beyond_three_are_no_limb_leads():
    names = tuple(f"Lead {k}" for k in range(1, 13))
    assert arrange((*names, "V1")).others == names


def test_vr_is_left_out_beside_avr():
    assert arrange(("aVR", "VR")) == (((3, 0),), (), ("VR",))


def test_a_study_says_what_its_names_mean():
    lead_names = (("CH1", "I"), ("ch 2", "aVR"), ("V1", "V6"))
    assert arrange(("CH1", "CH 2", "V1", "CH3"), lead_names) == (((0, 0), (3, 1), (11, 2)), (), ("CH3",))


def test_leads_left_out_are_named_and_the_rest_is_in_order(tmp_path):
    counts = write_record(tmp_path, leads=("V6", "MLII", "C3", "d1"))
    kept = keep_standard(read_wfdb(tmp_path, "r1"))
    assert (kept.leads, kept.notes) == (("I", "V6"), ("leads left out: MLII, C3",))
    assert np.array_equal(kept.samples, counts[:, [3, 0]])


def test_a_record_without_standard_leads_says_how_to_name_them(tmp_path):
    write_record(tmp_path, leads=("CH1", "CH2"))
    with pytest.raises(InputError, match=r"\(CH1, CH2\).*lead_names: \{NAME: I\}"):
        read_wfdb(tmp_path, "r1")
    assert keep_standard(read_wfdb(tmp_path, "r1", lead_names=(("CH1", "I"),)), (("CH1", "I"),)).leads == ("I",)


@pytest.mark.parametrize(
    ("leads", "units", "gains", "expected"),
    [
        (("II", "V1", "PLETH"), ("mV", "mV", "NU"), (1000, 1000, 2000), ("II", "V1")),
        (("II", "ABP"), ("mV", "mmHg"), (1000, 100), ("II",)),
        ((*LEADS, "PULSE"), ("mV",) * 12 + ("bpm",), (1000,) * 13, LEADS),
        (("II", "RESP"), ("mV", "mV"), (1000, 0), ("II",)),
    ],
)
def test_a_channel_that_is_no_ecg_does_not_spoil_the_record(tmp_path, leads, units, gains, expected):
    counts = write_record(tmp_path, leads=leads, units=units, gains=gains)
    kept = keep_standard(read_wfdb(tmp_path, "r1"))
    assert kept.leads == expected
    assert np.array_equal(kept.samples, counts[:, : len(expected)])
    assert kept.notes == (f"leads left out: {leads[-1]}",)


def test_a_standard_lead_in_another_unit_does_spoil_it(tmp_path):
    write_record(tmp_path, leads=("I", "II"), units=("mV", "mmHg"))
    with pytest.raises(InputError, match="lead II is in 'mmHg', which is no voltage"):
        read_wfdb(tmp_path, "r1")


def test_two_leads_of_one_name_are_one_where_they_are_alike(tmp_path):
    signals_mv = ecg_mv()[:, [0, 1, 0]]
    write_record(tmp_path, signals_mv=signals_mv, leads=("ECG I", "II", "I"))
    kept = keep_standard(read_wfdb(tmp_path, "r1"))
    assert (kept.leads, kept.notes) == (("I", "II"), ("two leads are named I and are alike: one is taken",))
    write_record(tmp_path, "r2", signals_mv + np.array([0, 0, 0.001]), ("ECG I", "II", "I"))
    with pytest.raises(InputError, match="two leads are named I and differ"):
        keep_standard(read_wfdb(tmp_path, "r2"))


def test_of_two_leads_of_one_name_the_one_with_samples_is_taken(tmp_path):
    counts = write_record(tmp_path, leads=("I", "I"))
    counts[:, 0] = -32768
    counts.tofile(tmp_path / "r1.dat")
    (tmp_path / "r1.hea").write_text(
        "r1 2 500 1500\nr1.dat 16 1000(0)/mV 16 0 0 0 0 I\n" + "r1.dat 16 1000 16 0 0 0 0 I"
    )
    assert np.array_equal(keep_standard(read_wfdb(tmp_path, "r1")).samples[:, 0], counts[:, 1])


@pytest.mark.parametrize(
    ("unit", "gain"),
    [
        *(
            ("microvolt", 1.0),
            ("microvolts", 1.0),
            ("MicroVolts", 1.0),
            ("uVolt", 1.0),
            ("[uV]", 1.0),
            ("\u00b5V", 1.0),
        ),
        *(("millivolt", 1e3), ("mVolt", 1e3), ("(mV)", 1e3), ("Volts", 1e6), ("nanovolts", 1e-3)),
        *(("adu/mV", 1e3), ("counts/mV", 1e3), ("LSB/uV", 1.0), ("1/mV", 1e3)),
    ],
)
def test_units_written_out_are_read(tmp_path, unit, gain):
    counts = write_record(tmp_path, gains=gain, units=unit, signals_mv=ecg_mv() * (1e3 / gain), leads=LEADS)
    read = read_wfdb(tmp_path, "r1")
    assert np.allclose(np.array(read.gains_per_mv), 1e3, rtol=1e-12)
    assert np.array_equal(read.samples, counts)


def test_counts_are_those_of_a_millivolt_where_a_gain_is_given(tmp_path):
    write_record(tmp_path, units="adu", gains=200.0)
    read = read_wfdb(tmp_path, "r1")
    assert (set(read.gains_per_mv), read.notes) == ({200.0}, ("unit 'adu': the gain is taken for counts per mV",))
    write_record(tmp_path, "r2", units="adu", gains=1.0)
    with pytest.raises(InputError, match="lead I is in 'adu', which is no voltage; write uV, mV or V"):
        read_wfdb(tmp_path, "r2")
