"""Limb leads: computed only on request and marked; exchanged electrodes are suspected, healthy records are not."""

import numpy as np
import pytest
import wfdb

from cache import open_records, open_signals
from cache.signals import LEADS, MISSING
from stages.readers import read_wfdb, standardise
from stages.readers.at_500_hz import row_at_500_hz
from stages.readers.limbs import derive_limb_leads, limb_suspicions
from tests.ingesting import ingest


def hearts(n: int = 4) -> np.ndarray:
    """Rows of a heart whose axis lies between I and II: int16 [n, 12, 5000]."""
    time = np.arange(5000) / 500
    beat = 900 * np.exp(-(((time % 0.8) - 0.3) ** 2) / 2e-4)
    noise = np.random.default_rng(0).normal(0, 5, (n, 2, 5000))
    one, two = beat + noise[:, 0], 1.3 * beat + noise[:, 1]
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    chest = [k * beat + 0 * one for k in (-1.0, -0.5, 0.2, 0.8, 1.0, 0.9)]
    return np.rint(np.stack([*limbs, *chest], axis=1)).astype(np.int16)


def exchange(rows: np.ndarray, *pairs: tuple[str, str]) -> np.ndarray:
    swapped = rows.copy()
    for a, b in pairs:
        swapped[:, [LEADS.index(a), LEADS.index(b)]] = swapped[:, [LEADS.index(b), LEADS.index(a)]]
    return swapped


def test_a_healthy_record_is_not_suspected():
    assert limb_suspicions(hearts()) == [None] * 4


@pytest.mark.parametrize("pair", [("I", "II"), ("I", "III"), ("II", "aVF"), ("aVR", "aVL"), ("III", "aVR")])
def test_exchanged_names_are_found(pair):
    assert set(limb_suspicions(exchange(hearts(), pair))) == {f"labels {pair[0]}/{pair[1]}"}


def test_exchanged_arms_are_found():
    rows = exchange(hearts(), ("II", "III"), ("aVR", "aVL"))
    rows[:, 0] *= -1
    assert set(limb_suspicions(rows)) == {"arms"}


def test_an_exchanged_right_leg_is_found():
    rows = hearts()
    one, two = rows[:, 0].astype(float), rows[:, 1].astype(float) / 100
    rows[:, :6] = np.stack([one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2], axis=1)
    assert set(limb_suspicions(rows)) == {"leg"}


def test_gaps_and_missing_leads_neither_raise_nor_hide_a_suspicion():
    rows = exchange(hearts(), ("I", "III"))
    rows[0, 1, 300:900] = MISSING
    rows[1, :, 3000:] = MISSING
    rows[2, 4] = MISSING
    rows[3] = MISSING
    assert limb_suspicions(rows) == ["labels I/III", "labels I/III", None, None]


def test_few_real_records_are_suspected_and_exchanged_names_are_found_in_them(test_data):
    headers = sorted((test_data / "ptbxl" / "records500").rglob("*.hea"))
    rows = np.empty((len(headers), 12, 5000), dtype=np.int16)
    for header, row in zip(headers, rows, strict=True):
        row[:] = row_at_500_hz(standardise(read_wfdb(test_data, str(header.relative_to(test_data))))[0], 500.0)
    assert sum(found is not None for found in limb_suspicions(rows)) <= len(rows) // 100
    found = limb_suspicions(exchange(rows, ("I", "III")))
    assert sum(name == "labels I/III" for name in found) > 0.95 * len(rows)


def test_derived_leads_are_what_the_file_would_have_held():
    rows = hearts()
    for row in rows:
        whole = row.astype(int)
        row[2:6] = MISSING
        row[0, 10], row[1, 20] = MISSING, MISSING
        assert derive_limb_leads(row, ("III", "aVR", "aVL", "aVF")) == ("III", "aVR", "aVL", "aVF")
        known = np.delete(np.arange(5000), [10, 20])
        assert np.abs(row[2:6, known] - whole[2:6, known]).max() <= 2
        assert (row[2:6, [10, 20]] == MISSING).all()


def test_nothing_is_derived_without_both_leads():
    row = hearts()[0]
    before = row.copy()
    assert derive_limb_leads(row, ("II", "III")) == derive_limb_leads(row, ("V1",)) == ()
    assert np.array_equal(row, before)


def test_ingest_derives_on_request_only_and_marks_it(tmp_path):
    rows = hearts()
    kept = [0, 1, 6, 7, 8, 9, 10, 11]
    for k, row in enumerate(rows):
        names = [LEADS[i] for i in (kept if k else range(12))]
        counts = row[kept if k else slice(None)].T.astype(int)
        shape = {"units": ["mV"] * len(names), "adc_gain": [1000.0] * len(names), "baseline": [0] * len(names)}
        (tmp_path / "in").mkdir(exist_ok=True)
        wfdb.wrsamp(
            f"r{k}",
            500,
            sig_name=names,
            d_signal=counts,
            fmt=["16"] * len(names),
            write_dir=str(tmp_path / "in"),
            **shape,
        )
    found = {}
    for name, asked in (("plain", False), ("derived", True)):
        place = {"records_path": tmp_path / name / "records.parquet", "signals_path": tmp_path / name / "signals.zarr"}
        summary = ingest("wfdb", tmp_path / "in", derive_leads=asked, **place)
        found[name] = open_records(place["records_path"]), open_signals(place["signals_path"]).read_uv(slice(0, 4))
        assert any("3 records have limb leads computed" in note for note in summary.notes) == asked
    records, signals = found["derived"]
    assert [list(names) for names in records["derived_leads"]] == [[], *[["III", "aVR", "aVL", "aVF"]] * 3]
    assert [list(names) for names in records["missing_leads"]] == [[], *[["III", "aVR", "aVL", "aVF"]] * 3]
    assert np.abs(signals.astype(int) - rows).max() <= 2
    records, signals = found["plain"]
    assert [list(names) for names in records["derived_leads"]] == [[]] * 4
    assert (signals[1:, 2:6] == MISSING).all()
