"""The embedded cohort: its bytes, its files, its physiology."""

import csv
import gzip
import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import wfdb
from pydantic import ValidationError
from scipy.signal import find_peaks

from cache.errors import UsageError
from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate
from stages.synthetic.beats import SECONDS
from stages.synthetic.cohort import Chunk, Defect, PatientBlock, draw_block, draw_chunks
from stages.synthetic.heart import LEADS, N_SAMPLES, RATE_HZ
from stages.synthetic.labels import FIRST_LINE, MISSING, OTHER_LINE, QUOTAS, Report
from stages.synthetic.noise import NAN_SENTINEL
from stages.synthetic.physiology import Atria, Conduction


def read(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text)))


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "mimic"
    generate(GenerateSettings(), GeneratePaths(folder))
    return folder


@pytest.fixture(scope="module")
def block() -> PatientBlock:
    return draw_block(seed=0, number=0)


@pytest.fixture(scope="module")
def chunks(block: PatientBlock) -> list[Chunk]:
    return list(draw_chunks(block, 200))


def defects(n_blocks: int) -> np.ndarray:
    return np.concatenate([draw_block(0, number, 0.01).defect for number in range(n_blocks)])


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate(GenerateSettings(records=60, seed=seed), GeneratePaths(tmp_path / name))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_a_smaller_cohort_is_the_beginning_of_a_larger_one(cohort: Path, tmp_path: Path) -> None:
    generate(GenerateSettings(records=230), GeneratePaths(tmp_path / "small"))
    for name in ("record_list.csv", "machine_measurements.csv", "RECORDS"):
        small, large = (tmp_path / "small" / name).read_bytes(), (cohort / name).read_bytes()
        assert large.startswith(small)
    for name in ("patients.csv.gz", "labevents.csv.gz"):
        small = gzip.decompress((tmp_path / "small" / "hosp" / name).read_bytes())
        large = gzip.decompress((cohort / "hosp" / name).read_bytes())
        assert large.startswith(small)
    for path in (tmp_path / "small" / "files").rglob("*.dat"):
        assert path.read_bytes() == (cohort / path.relative_to(tmp_path / "small")).read_bytes()


def test_the_tables_have_mimics_columns(cohort: Path) -> None:
    reports = ",".join(f"report_{k}" for k in range(18))
    heads = {
        "record_list.csv": "subject_id,study_id,file_name,ecg_time,path",
        "machine_measurements.csv": f"subject_id,study_id,cart_id,ecg_time,{reports},bandwidth,filtering,rr_interval,"
        "p_onset,p_end,qrs_onset,qrs_end,t_end,p_axis,qrs_axis,t_axis",
        "hosp/patients.csv.gz": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
        "hosp/labevents.csv.gz": "labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,"
        "storetime,value,valuenum,valueuom,ref_range_lower,ref_range_upper,flag,priority,comments",
    }
    for name, head in heads.items():
        data = (cohort / name).read_bytes()
        text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
        assert text.split("\n", 1)[0] == head


def test_every_listed_record_lies_where_mimic_puts_it(cohort: Path) -> None:
    rows = read(cohort / "record_list.csv")
    assert len(rows) == len({row["study_id"] for row in rows}) == 600
    for row in rows:
        subject, study = row["subject_id"], row["study_id"]
        assert row["path"] == f"files/p{subject[:4]}/p{subject}/s{study}/{study}"
        assert row["file_name"] == study
    assert (cohort / "RECORDS").read_text().split() == [row["path"] for row in rows]
    assert [r["study_id"] for r in read(cohort / "machine_measurements.csv")] == [r["study_id"] for r in rows]


def test_wfdb_reads_every_sound_record_with_its_checksums(cohort: Path) -> None:
    rows, broken = read(cohort / "record_list.csv"), defects(3)
    times = {row["path"]: row["ecg_time"] for row in rows}
    for row in (row for row, defect in zip(rows, broken, strict=True) if defect == Defect.NONE):
        record = wfdb.rdrecord(str(cohort / row["path"]), physical=False)
        assert record.d_signal.shape == (N_SAMPLES, record.n_sig)
        assert record.calc_checksum() == record.checksum
        assert record.d_signal[0].tolist() == record.init_value
        assert (record.fs, set(record.fmt), set(record.adc_gain), set(record.units)) == (500, {"16"}, {200.0}, {"mV"})
        assert [name for name in LEADS if name in record.sig_name] == record.sig_name
        assert str(record.base_datetime) == times[row["path"]]
        assert record.comments == [f"subject_id: {row['subject_id']}"]


def test_a_handful_of_records_is_broken_in_three_ways(cohort: Path) -> None:
    rows, broken = read(cohort / "record_list.csv"), defects(3)
    assert Counter(broken.tolist()) == {0: 594, 1: 2, 2: 2, 3: 2}
    for row, defect in zip(rows, broken, strict=True):
        header, data = (cohort / f"{row['path']}.{kind}" for kind in ("hea", "dat"))
        if defect == Defect.NO_FILE:
            assert not header.parent.exists()
        if defect == Defect.TRUNCATED:
            assert data.stat().st_size < 12 * N_SAMPLES * 2
        if defect == Defect.BAD_DATE:
            with pytest.raises(ValueError, match="does not match format"):
                wfdb.rdheader(str(cohort / row["path"]))


def test_without_defects_every_record_has_whole_files(tmp_path: Path) -> None:
    generate(GenerateSettings(records=120, defect_rate=0.0), GeneratePaths(tmp_path / "sound"))
    assert len(list((tmp_path / "sound").rglob("*.hea"))) == 120
    for row in read(tmp_path / "sound" / "record_list.csv"):
        wfdb.rdheader(str(tmp_path / "sound" / row["path"]))


def test_limb_leads_obey_einthoven_and_goldberger_within_quantisation(chunks: list[Chunk]) -> None:
    checked = 0
    for chunk in chunks:
        gapless = ~(chunk.counts == NAN_SENTINEL).any(axis=(1, 2)) & ~chunk.losses.flat[:, :6].any(axis=1)
        leads = dict(zip(LEADS, chunk.counts[gapless].astype(int).transpose(1, 0, 2), strict=True))
        assert np.abs(leads["II"] - leads["I"] - leads["III"]).max() <= 1.5
        assert np.abs(leads["aVR"] + (leads["I"] + leads["II"]) / 2).max() <= 1
        assert np.abs(leads["aVL"] - leads["I"] + leads["II"] / 2).max() <= 1.25
        assert np.abs(leads["aVF"] - leads["II"] + leads["I"] / 2).max() <= 1.25
        checked += int(gapless.sum())
    assert checked > 180


def test_the_rr_interval_is_what_an_r_peak_detector_finds(block: PatientBlock, chunks: list[Chunk]) -> None:
    errors = []
    for chunk in chunks:
        plain = np.isin(block.state.report[chunk.rows], [Report.SINUS, Report.BRADYCARDIA, Report.SINUS_ARRHYTHMIA])
        normal = block.state.conduction[chunk.rows] == Conduction.NORMAL
        for i in np.flatnonzero(plain & normal & (chunk.measured.rr_interval != MISSING)):
            signal = np.where(chunk.counts[i] == NAN_SENTINEL, 0, chunk.counts[i]).astype(float)
            slope = np.sqrt((np.diff(signal, axis=1) ** 2).sum(axis=0))
            slope = np.convolve(slope, np.hanning(31) / 15, "same")
            peaks, _ = find_peaks(slope, height=0.4 * np.percentile(slope, 98), distance=int(0.3 * RATE_HZ))
            errors.append(abs(2 * np.diff(peaks).mean() - chunk.measured.rr_interval[i]))
    assert len(errors) > 50
    assert np.median(errors) < 4


def beat_window(chunk: Chunk, i: int) -> np.ndarray:
    """The root mean square over leads of a clean beat well inside record i, 400 ms before QRS to 200 ms after."""
    onset = chunk.beats.onset_s[(chunk.beats.record == i) & (chunk.beats.onset_s > 1)][0]
    first = round(onset * RATE_HZ) - 200
    return np.sqrt((chunk.clean_mv[i, :, first : first + 300] ** 2).mean(axis=0))


def test_pr_and_qrs_of_the_truth_are_in_the_signal(block: PatientBlock, chunks: list[Chunk]) -> None:
    p_errors, qrs_true, qrs_seen = [], [], []
    for chunk in chunks:
        slow = (block.state.report == Report.BRADYCARDIA)[chunk.rows]
        for i in np.flatnonzero(slow & (block.state.conduction[chunk.rows] == Conduction.NORMAL)):
            wave, row = beat_window(chunk, i), chunk.rows.start + i
            p = slice(200 - round((block.state.pr_s[row] + 0.01) * RATE_HZ), 200 - 4)
            rise = wave[p] - wave[p].min()
            centre_s = ((np.arange(p.start, p.stop) - 200) * rise).sum() / rise.sum() / RATE_HZ
            p_errors.append(abs(centre_s + block.state.pr_s[row] - block.state.p_s[row] / 2))
            steep = np.abs(np.diff(wave[190:270]))
            share = np.cumsum(steep) / steep.sum()
            qrs_seen.append(np.searchsorted(share, 0.95) - np.searchsorted(share, 0.02))
            qrs_true.append(block.state.qrs_s[row])
    assert np.median(p_errors) < 0.010
    assert np.corrcoef(qrs_true, qrs_seen)[0, 1] > 0.8
    assert np.median(np.abs(2e-3 * np.array(qrs_seen) - qrs_true)) < 0.020


def test_measurements_state_the_truth_or_the_sentinel(block: PatientBlock, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        measured, has_p = chunk.measured, np.isin(block.state.atria[chunk.rows], [Atria.SINUS, Atria.LOW])
        seen = measured.p_onset != MISSING
        assert not (seen & ~has_p).any()
        pr_ms = measured.qrs_onset[seen] - measured.p_onset[seen]
        np.testing.assert_allclose(pr_ms, 1000 * block.state.pr_s[chunk.rows][seen], atol=0.51)
        whole = measured.t_end != MISSING
        assert (measured.qrs_onset < measured.qrs_end)[whole].all()
        assert (measured.qrs_end < measured.t_end)[whole].all()
        assert (np.abs(measured.qrs_axis[measured.qrs_axis != MISSING]) <= 180).all()


def test_every_class_is_there_as_often_as_documented(cohort: Path) -> None:
    lines = {line.upper(): int(kind) for kind, line in FIRST_LINE.items()}
    lines |= {line.upper(): int(Report.OTHER) for line in OTHER_LINE.values()}
    rows = read(cohort / "machine_measurements.csv")
    counts = Counter(lines[row["report_0"].upper()] for row in rows)
    assert [counts[k] for k in range(15)] == (3 * QUOTAS).tolist()
    assert min(counts.values()) >= 10
    assert any(row["report_0"].isupper() for row in rows if "inus" in row["report_0"].lower())
    assert all(row["rr_interval"] == "29999" or 300 < int(row["rr_interval"]) < 1700 for row in rows)
    assert any(row["rr_interval"] == "29999" for row in rows)


def test_people_follow_mimics_rules(cohort: Path) -> None:
    people = {row["subject_id"]: row for row in read(cohort / "hosp" / "patients.csv.gz")}
    records = read(cohort / "record_list.csv")
    per_patient = Counter(row["subject_id"] for row in records)
    assert set(per_patient) == set(people)
    assert max(per_patient.values()) >= 4
    assert 0.4 < np.mean([count == 1 for count in per_patient.values()]) < 0.75
    ages = np.array([int(row["anchor_age"]) for row in people.values()])
    assert ages.min() >= 18
    assert 90 not in ages
    assert ages.max() == 91
    assert {row["gender"] for row in people.values()} == {"M", "F"}
    assert all(row["dod"] == "" or len(row["dod"]) == 10 for row in people.values())
    order = [(int(row["subject_id"]), row["ecg_time"]) for row in records]
    assert order == sorted(order)


def test_potassium_is_labelled_for_most_records_and_hidden_among_other_results(cohort: Path) -> None:
    labs = read(cohort / "hosp" / "labevents.csv.gz")
    potassium = [row for row in labs if row["itemid"] in {"50971", "50822"}]
    assert {row["itemid"] for row in potassium} == {"50971", "50822"}
    assert len({row["itemid"] for row in labs}) > 6
    assert [int(row["labevent_id"]) for row in labs] == sorted({int(row["labevent_id"]) for row in labs})
    for row in (row for row in potassium if row["valuenum"]):
        outside = not float(row["ref_range_lower"]) <= float(row["valuenum"]) <= float(row["ref_range_upper"])
        assert (row["flag"] == "abnormal") == outside
    assert any(row["valuenum"] == "" for row in potassium)
    draws: dict[str, list[np.datetime64]] = {}
    for row in potassium:
        draws.setdefault(row["subject_id"], []).append(np.datetime64(row["charttime"]))
    labelled = [
        any(-240 <= (time - np.datetime64(row["ecg_time"])) / np.timedelta64(1, "m") <= 60 for time in times)
        for row in read(cohort / "record_list.csv")
        for times in [draws.get(row["subject_id"], [])]
    ]
    assert 0.8 < np.mean(labelled) < 0.92


def clean_value(chunk: Chunk, i: int, lead: str, after_onset_s: float) -> float:
    onset = chunk.beats.onset_s[(chunk.beats.record == i) & (chunk.beats.onset_s > 1)][0]
    base = chunk.clean_mv[i, LEADS.index(lead), round((onset - 0.004) * RATE_HZ)]
    return float(chunk.clean_mv[i, LEADS.index(lead), round((onset + after_onset_s) * RATE_HZ)] - base)


def test_infarction_lifts_st_in_its_region_and_lowers_it_opposite(block: PatientBlock, chunks: list[Chunk]) -> None:
    seen = set()
    for chunk in chunks:
        for i in np.flatnonzero(block.state.region[chunk.rows] >= 0):
            row = chunk.rows.start + i
            j = block.state.qrs_s[row] + 0.03
            region = int(block.state.region[row])
            lifted = [("III", "aVF"), ("V2", "V3"), ("I", "aVL")][region]
            assert all(clean_value(chunk, i, lead, j) > 0.08 for lead in lifted)
            if region == 0:
                assert clean_value(chunk, i, "aVL", j) < 0
            seen.add(region)
    assert len(seen) >= 2


def test_low_atrial_rhythm_turns_p_over_in_the_inferior_leads(block: PatientBlock, chunks: list[Chunk]) -> None:
    def p_in_ii(chunk: Chunk, i: int) -> float:
        row = chunk.rows.start + i
        return clean_value(chunk, i, "II", -block.state.pr_s[row] + block.state.p_s[row] / 2)

    for chunk in chunks:
        report = block.state.report[chunk.rows]
        assert all(p_in_ii(chunk, i) < 0 for i in np.flatnonzero(report == Report.ECTOPIC_ATRIAL))
        assert all(p_in_ii(chunk, i) > 0 for i in np.flatnonzero(report == Report.BRADYCARDIA))


def rr_ms(chunk: Chunk, i: int) -> np.ndarray:
    onset = chunk.beats.onset_s[chunk.beats.record == i]
    return 1000 * np.diff(onset[(onset >= 0) & (onset < SECONDS)])


def test_rhythms_have_the_regularity_of_their_names(block: PatientBlock, chunks: list[Chunk]) -> None:
    spread: dict[Report, list[float]] = {}
    for chunk in chunks:
        for i, code in enumerate(block.state.report[chunk.rows]):
            intervals = rr_ms(chunk, i)
            spread.setdefault(Report(code), []).append(float(intervals.std() / intervals.mean()))
    typical = {kind: np.median(values) for kind, values in spread.items()}
    assert typical[Report.PACING] < 0.005 < typical[Report.SINUS] < 0.05
    assert min(typical[Report.FIBRILLATION], typical[Report.RAPID_FIBRILLATION]) > 0.12
    assert typical[Report.SINUS_ARRHYTHMIA] > 2 * typical[Report.SINUS]
    assert typical[Report.PVC] > 0.08


def test_potassium_shapes_the_t_wave(block: PatientBlock) -> None:
    k = block.state.potassium
    plain = np.isin(block.state.report, [Report.SINUS, Report.BRADYCARDIA, Report.TACHYCARDIA])
    high, normal, low = (block.state.t_gain[plain & keep].mean() for keep in (k > 5.6, (k > 3.6) & (k < 4.8), k < 3.1))
    assert high > 1.2 * normal > 1.2 * 1.2 * low
    assert block.state.u_gain[plain & (k < 3.1)].mean() > 2 * block.state.u_gain[plain & (k > 3.7)].mean()


def test_some_leads_are_flat_missing_or_interrupted(chunks: list[Chunk]) -> None:
    flat = sum(int(chunk.losses.flat.sum()) for chunk in chunks)
    lost = sum(int((chunk.losses.missing | chunk.losses.absent).sum()) for chunk in chunks)
    gaps = sum(int((chunk.losses.gap[:, 1] > 0).sum()) for chunk in chunks)
    assert min(flat, lost, gaps) >= 1
    assert flat + lost + gaps < 40
    for chunk in chunks:
        assert (chunk.counts[chunk.losses.missing] == NAN_SENTINEL).all()
        assert (chunk.counts[chunk.losses.flat & ~chunk.losses.gap_leads] == 0).all()


def test_an_absent_lead_is_not_in_the_header(tmp_path: Path) -> None:
    generate(GenerateSettings(records=400, defect_rate=0.0), GeneratePaths(tmp_path / "c"))
    counts = Counter(int(path.read_text().split(maxsplit=2)[1]) for path in (tmp_path / "c" / "files").rglob("*.hea"))
    assert set(counts) == {11, 12}
    assert counts[11] < 20


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    generate(
        GenerateSettings(records=70), GeneratePaths(tmp_path / "c"), lambda done, total: calls.append((done, total))
    )
    assert calls == [(50, 70), (70, 70)]


@pytest.mark.parametrize("wrong", [{"records": 0}, {"seed": -1}, {"defect_rate": 1.5}])
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        generate(GenerateSettings(**wrong), GeneratePaths(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        generate(GenerateSettings(), GeneratePaths(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
