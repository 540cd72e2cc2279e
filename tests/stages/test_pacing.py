"""Pace spikes: generated ones are counted, waves and noise are not, and real statements about pacing agree."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache import open_records
from cache.signals import MISSING
from stages.readers import read_wfdb, standardise
from stages.readers.at_500_hz import row_at_500_hz
from stages.readers.pacing import SEVERAL, count_pace_spikes
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate
from tests.ingesting import ingest


def beats(n_rows: int = 1, seed: int = 0) -> np.ndarray:
    """Return smooth beats with steep R waves (1.5 mV, 40 ms at the foot) and 20 microvolts of noise, in all leads."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 20, (n_rows, 12, 5000))
    at = np.arange(5000)
    for centre in range(200, 4900, 400):
        rows += 1500 * np.clip(1 - np.abs(at - centre) / 10, 0, None)
    return rows.astype(np.int16)


def with_spikes(rows: np.ndarray, at: list[int], height: int, width: int = 1, leads: int = 12) -> np.ndarray:
    rows = rows.copy()
    for place in at:
        rows[:, :leads, place : place + width] += np.int16(height)
    return rows


@pytest.mark.parametrize("height", [400, -400, 3000])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_spikes_before_each_beat_are_counted(height, width):
    at = list(range(150, 4900, 400))
    assert count_pace_spikes(with_spikes(beats(9), at, height, width)) == [len(at)] * 9


def test_two_spikes_a_beat_are_two(tmp_path):
    at = [place for beat in range(160, 4900, 400) for place in (beat - 80, beat)]
    assert count_pace_spikes(with_spikes(beats(), at, 800)) == [len(at)]


def test_waves_noise_and_artefacts_of_few_leads_are_none():
    assert count_pace_spikes(beats(3)) == [0] * 3
    assert count_pace_spikes(with_spikes(beats(), [150, 550, 950], 2000, leads=3)) == [0]
    assert count_pace_spikes(with_spikes(beats(), [150, 550, 950], 100)) == [0]
    assert count_pace_spikes(with_spikes(beats(), [150, 550, 950], 800, width=8)) == [0]


def test_missing_samples_and_leads_are_no_spikes():
    rows = beats(2)
    rows[0, 2:, 1000:1003] = MISSING
    rows[1] = MISSING
    assert count_pace_spikes(rows) == [0, 0]
    some = with_spikes(beats(), [150, 550, 950], 1000)
    some[:, 5:] = MISSING
    assert count_pace_spikes(some) == [3]


def test_what_the_records_say_about_pacing_agrees(test_data):
    def counted(paths: list[str]) -> np.ndarray:
        rows = np.empty((len(paths), 12, 5000), dtype=np.int16)
        for row, path in zip(rows, paths, strict=True):
            row[:] = row_at_500_hz(standardise(read_wfdb(test_data, path))[0], 500.0)
        return np.array(count_pace_spikes(rows))

    table = pd.read_csv(test_data / "ptbxl/ptbxl_database.csv").head(400)
    paced = table["scp_codes"].str.contains("PACE").to_numpy()
    found = counted(("ptbxl/" + table["filename_hr"]).tolist()) >= SEVERAL
    assert (paced.sum(), found[paced].sum(), found[~paced].sum()) == (5, 5, 0)
    table = pd.read_csv(test_data / "ludb/ludb.csv")
    table = table[[(test_data / f"ludb/data/{name}.hea").is_file() for name in table["ID"]]]
    paced = table["Cardiac pacing"].notna().to_numpy()
    found = counted([f"ludb/data/{name}" for name in table["ID"]]) >= SEVERAL
    # The one that is missed has bipolar pacing: its spikes are too small here.
    assert (paced.sum(), found[paced].sum(), found[~paced].sum()) == (4, 3, 0)


def test_the_column_is_filled_on_request_only(tmp_path):
    cohort: Path = tmp_path / "cohort"
    generate(GenerateSettings(records=24, seed=1, defect_rate=0.2), GeneratePaths(cohort))
    columns = {}
    for asked in (False, True):
        out = tmp_path / json.dumps(asked)
        ingest(
            "mimic-iv-ecg",
            cohort,
            {},
            records_path=out / "records.parquet",
            signals_path=out / "signals.zarr",
            pace_spikes=asked,
        )
        columns[asked] = open_records(out / "records.parquet")
    assert columns[False]["pace_spikes"].isna().all()
    asked = columns[True]
    assert (asked["pace_spikes"].notna() == (asked["status"] == "ok")).all()
    assert (asked["status"] == "bad").any()
