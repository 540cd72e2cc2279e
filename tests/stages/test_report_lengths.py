"""What the report says of short records: how many there are, and what each expert makes of them."""

import pandas as pd

from stages.report.tables import cohort_tables


def cohort(lengths, rate_hz=250.0):
    n = len(lengths)
    frame = pd.DataFrame({"record_id": [f"r{k}" for k in range(n)], "patient_id": [f"p{k}" for k in range(n)]})
    frame = frame.assign(split="test", status="ok", source="mine", reason=None, sampling_rate_hz=rate_hz)
    frame["n_samples"] = [round(seconds * rate_hz) for seconds in lengths]
    frame["missing_leads"], frame["flat_leads"] = [[[] for _ in range(n)] for _ in range(2)]
    return frame.assign(nan_fraction=0.0, clipped_fraction=0.0)


def test_short_records_are_counted_by_length():
    found = dict(cohort_tables(cohort([10, 10, 9.5, 5, 4, 2.5, 1, 30]))["quality"])
    assert {name: n for name, n in found.items() if "shorter" in name} == {
        "shorter than 10 s": 5,
        "shorter than 5 s": 3,
        "shorter than 2.5 s": 1,
    }
    assert not [name for name, _ in cohort_tables(cohort([10, 9.995, 30]))["quality"] if "shorter" in name]
