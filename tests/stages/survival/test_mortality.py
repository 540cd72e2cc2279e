"""Mortality of MIMIC-IV and its censoring, the hazard behind the generated cohort, follow-up from tables of labels."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache.errors import InputError, UsageError
from cache.follow_up import times_and_events
from stages.cohorts import open_cohort
from stages.ingest.label_lines import label_lines
from stages.ingest.record_table import new_rows
from stages.synthetic import GeneratePaths, GenerateSettings, mortality
from stages.synthetic.cohort import draw_block
from stages.synthetic.stage import run as generate

RECORDS = "subject_id,study_id,file_name,ecg_time,path"


def make(folder: Path, patients: list[str], stays: list[str] | None, ecgs: list[tuple[int, int, str]]) -> Path:
    """Write the tables of a tiny MIMIC-IV-ECG; `ecgs`: (subject, study, time)."""
    (folder / "hosp").mkdir(parents=True)
    listed = [f"{who},{study},{study},{time},files/p1/{study}" for who, study, time in ecgs]
    (folder / "record_list.csv").write_text("\n".join([RECORDS, *listed]) + "\n")
    measured = [f"{study},800,Sinus rhythm" for _, study, _ in ecgs]
    (folder / "machine_measurements.csv").write_text("\n".join(["study_id,rr_interval,report_0", *measured]) + "\n")
    head = "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod"
    (folder / "hosp" / "patients.csv").write_text("\n".join([head, *patients]) + "\n")
    if stays is not None:
        with gzip.open(folder / "hosp" / "admissions.csv.gz", "wt") as file:
            file.write("\n".join(["subject_id,hadm_id,dischtime", *stays]) + "\n")
    return folder


def entries(folder: Path, **options):
    return open_cohort("mimic-iv-ecg", folder, options).entries()


def test_death_counts_until_a_year_after_the_last_discharge(tmp_path):
    patients = [
        "1,F,50,2150,,2150-03-01",
        "2,M,60,2150,,",
        "3,M,60,2150,,2152-06-01",
        "4,F,70,2150,,",
        "5,F,70,2150,,2150-01-05",
    ]
    stays = [
        *("1,11,2150-01-03 12:00:00", "2,12,2150-01-03 12:00:00", "2,13,2150-07-01 00:00:00"),
        *("3,14,2150-01-03 00:00:00", "5,15,2150-01-09 00:00:00", "2,16,2149-01-01 00:00:00"),
    ]
    ecgs = [
        (1, 101, "2150-01-01 00:00:00"),  # dies two months later, at the end of 1 March
        (1, 102, "2150-03-01 18:00:00"),  # dies on the day of the ECG
        (2, 103, "2150-01-01 00:00:00"),  # alive a year after the last of the discharges
        (3, 104, "2150-01-01 00:00:00"),  # the day of death lies beyond what is known
        (4, 105, "2150-01-01 00:00:00"),  # never discharged: nobody knows
        (5, 106, "2150-01-08 00:00:00"),  # a death before the ECG
        (2, 107, "2151-07-02 00:00:00"),  # an ECG when nothing is known any more
    ]
    found = entries(make(tmp_path / "m", patients, stays, ecgs))
    expected = [60.0, 0.25, -(181 + 365.0), -(2 + 365.0), np.nan, np.nan, np.nan]
    np.testing.assert_allclose(found.frame["mortality"], expected, atol=1e-4)
    assert found.targets[-1].kind == "survival"
    assert found.targets[-1].horizons == (30.0, 180.0, 365.0)
    assert found.targets[-1].unit == "days"
    note = next(note for note in found.notes if note.startswith("mortality"))
    assert note == (
        "mortality: 1 no discharge or time, 1 the ECG is later than death, "
        "1 the ECG is later than a year after the last discharge"
    )


def test_without_admissions_there_is_no_mortality_and_a_note(tmp_path):
    found = entries(make(tmp_path / "m", ["1,F,50,2150,,"], None, [(1, 101, "2150-01-01 00:00:00")]))
    assert [target.name for target in found.targets] == ["rr_interval", "age", "gender", "flag", "report_label"]
    assert any(note.startswith("mortality: left out, there is no admissions.csv") for note in found.notes)


def test_horizons_are_an_option_that_must_ascend(tmp_path):
    folder = make(
        tmp_path / "m", ["1,F,50,2150,,2150-01-09"], ["1,11,2150-01-03 12:00:00"], [(1, 1, "2150-01-01 00:00:00")]
    )
    assert entries(folder, mortality_days=[7, 90]).targets[-1].horizons == (7.0, 90.0)
    with pytest.raises(UsageError, match="must ascend"):
        entries(folder, mortality_days=[90, 7])


def test_the_generated_cohort_yields_mortality(tmp_path):
    generate(GenerateSettings(records=40, defect_rate=0), GeneratePaths(tmp_path / "m"))
    found = entries(tmp_path / "m")
    times, events = times_and_events(found.frame["mortality"].to_numpy())
    people = pd.read_csv(tmp_path / "m" / "hosp" / "patients.csv.gz").set_index("subject_id")
    dead = people.loc[found.frame["patient_id"].astype(int), "dod"].notna().to_numpy()
    np.testing.assert_array_equal(events, dead)
    assert (times[~events] > 365).all()  # each ECG is of a stay: a year after it is known
    stays = pd.read_csv(tmp_path / "m" / "hosp" / "admissions.csv.gz", parse_dates=["admittime", "dischtime"])
    assert (stays["dischtime"] > stays["admittime"]).all()
    at_door = stays[stays["hospital_expire_flag"] == 1]
    assert (at_door["dischtime"].dt.strftime("%Y-%m-%d").to_numpy() == people.loc[at_door["subject_id"], "dod"]).all()
    rows = new_rows(found, "mimic-iv-ecg", None, 0)
    line = next(line for line in label_lines(rows) if line.startswith("label mortality"))
    assert line.startswith(f"label mortality: survival, {int(events.sum())} events, median follow-up ")


def last_ecgs(n_blocks: int) -> pd.DataFrame:
    """What the hazard follows at each patient's last ECG, and the follow-up as the label has it."""
    parts = []
    for number in range(n_blocks):
        block = draw_block(0, number)
        patient, time = block.schedule.patient, block.schedule.time
        last = np.searchsorted(patient, np.arange(patient[-1] + 1), side="right") - 1
        years = (time.astype("datetime64[Y]").astype(int) + 1970) - block.people.anchor_year[patient]
        known = mortality.covariates(
            block.people.age_years[patient] + years, block.schedule.report, block.state.potassium
        )
        end = block.stays.discharged[last] + np.timedelta64(365, "D")
        died = ~np.isnat(block.people.death)
        stop = np.where(died, (block.people.death + np.timedelta64(1, "D")).astype("datetime64[m]"), end)
        days = (stop - time[last]).astype(float) / 1440
        parts.append(np.column_stack([known[last], days, died]))
    return pd.DataFrame(np.vstack(parts), columns=[*mortality.LOG_HAZARDS, "days", "died"])


def test_the_hazard_ratios_of_the_generated_cohort_are_recovered():
    import torch

    from stages.heads import TaskSpec
    from stages.heads.in_memory.probe import Problem, Rotation, fit_path
    from stages.heads.targets.tasks import layout

    frame = last_ecgs(25)
    assert 0.12 < frame["died"].mean() < 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lifelines import CoxPHFitter

        theirs = CoxPHFitter().fit(frame, "days", "died")
    for name, truth in mortality.LOG_HAZARDS.items():
        assert abs(theirs.params_[name] - truth) < 2.6 * theirs.standard_errors_[name], name
    x = frame[list(mortality.LOG_HAZARDS)].to_numpy(np.float32)
    signed = np.where(frame["died"] == 1, frame["days"], -frame["days"]).astype(np.float32)
    rotation = Rotation.fit(x)
    y = torch.from_numpy(signed)[None, :, None]
    problem = Problem(
        torch.from_numpy(rotation.transform(x))[None], y, torch.ones_like(y), torch.ones(1, 1, len(x)),
        layout([TaskSpec("mortality", "survival", horizons=(365,))]),
    )  # fmt: skip
    found = torch.from_numpy(rotation.axes) @ fit_path(problem, torch.tensor([1e-5]), tolerance=1e-6)[0, 0, 0, :-1, 0]
    np.testing.assert_allclose(found, theirs.params_, atol=2e-3)


def test_deaths_are_drawn_from_a_stream_that_signals_and_labels_do_not_share(monkeypatch):
    usual = draw_block(3, 0)
    monkeypatch.setattr(mortality, "STREAM", 777)
    other = draw_block(3, 0)
    assert (usual.people.death != other.people.death).any()
    assert usual.labs == other.labs
    for part in ("state", "traits", "cart", "draws", "schedule"):
        for name, values in vars(getattr(usual, part)).items():
            np.testing.assert_array_equal(values, getattr(getattr(other, part), name))


TABLE = ["file,days,dead,age", *(f"r{k}.hea,{10 * k + 5},{k % 2},{40 + k}" for k in range(12))]


def table_entries(tmp_path: Path, lines: list[str], survival: dict[str, object]):
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(12):
        (folder / f"r{k}.hea").write_text(f"r{k} 1 500 5000\nr{k}.dat 16 200/mV 16 0 0 0 0 I\n")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return open_cohort("wfdb", folder, {"labels": str(tmp_path / "labels.csv"), "survival": survival}).entries()


def test_a_table_gives_a_time_and_an_event(tmp_path):
    columns = {"time": "days", "event": "dead", "horizons": [30, 90]}
    found = table_entries(tmp_path, TABLE, {"death": columns})
    by_name = {target.name: target for target in found.targets}
    assert set(by_name) == {"death", "age"}
    assert by_name["death"].horizons == (30.0, 90.0)
    order = found.frame["record_id"].str.extract(r"(\d+)")[0].astype(int)
    np.testing.assert_array_equal(found.frame["death"], [(10 * k + 5) * (1 if k % 2 else -1) for k in order])


def test_horizons_of_a_table_are_quartiles_of_the_events_where_none_are_named(tmp_path):
    found = table_entries(tmp_path, TABLE, {"death": {"time": "days", "event": "dead", "unit": "months"}})
    target = next(target for target in found.targets if target.name == "death")
    events = [10 * k + 5 for k in range(12) if k % 2]
    assert target.horizons == tuple(np.quantile(events, [0.25, 0.5, 0.75]))
    assert target.unit == "months"


@pytest.mark.parametrize(
    ("line", "survival", "message"),
    [
        ("r3.hea,35,perhaps,43", {"time": "days", "event": "dead"}, "column 'dead' says 'perhaps'; an event must be 1"),
        ("r3.hea,35,1,43", {"time": "weeks", "event": "dead"}, "no column 'weeks' .option 'survival.death.time'"),
        ("r3.hea,35,1,43", {"time": "days", "event": "age"}, "column 'age' says '40'; an event must be 1"),
    ],
)
def test_what_is_no_follow_up_is_refused_by_name(tmp_path, line, survival, message):
    lines = [line if row.startswith("r3.") else row for row in TABLE]
    with pytest.raises(InputError, match=message):
        table_entries(tmp_path, lines, {"death": survival})


def test_nobody_followed_is_null_with_a_note(tmp_path):
    lines = ["r3.hea,0,1,43" if row.startswith("r3.") else row for row in TABLE]
    found = table_entries(tmp_path, lines, {"death": {"time": "days", "event": "dead"}})
    assert "death: 1 times are not above 0 and become null" in found.notes
    assert found.frame["death"].isna().sum() == 1
