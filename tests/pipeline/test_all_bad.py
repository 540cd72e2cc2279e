"""A cohort of which no record can be read is an error of ingest itself, with the likely fix."""

import pandas as pd
import yaml


def test_a_ptbxl_with_the_other_rate_only_names_the_option(tmp_path, ensemble, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ptb/records100").mkdir(parents=True)
    rows = {
        "ecg_id": [1, 2, 3],
        "patient_id": [1, 2, 3],
        "age": [50, 60, 70],
        "sex": [0, 1, 0],
        "strat_fold": [1, 9, 10],
    }
    rows |= {"scp_codes": ["{'NORM': 100.0}"] * 3}
    rows |= {"filename_lr": [f"records100/{k}_lr" for k in range(3)], "filename_hr": ["records500/x_hr"] * 3}
    pd.DataFrame(rows).to_csv(tmp_path / "ptb/ptbxl_database.csv", index=False)
    statements = {"": ["NORM"], "diagnostic": [1.0], "form": [None], "rhythm": [None], "diagnostic_class": ["NORM"]}
    statements |= {"diagnostic_subclass": ["NORM"]}
    pd.DataFrame(statements).to_csv(tmp_path / "ptb/scp_statements.csv", index=False)
    params = {"cohort": {"source": "ptbxl", "path": "ptb"}, "experts": {"rocket": {}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    code, _, err = ensemble("ingest")
    assert code == 1
    assert "all 3 records of" in err
    assert err.rstrip().endswith("this copy has records100/ alone: set cohort.options: {rate: 100}")
    assert (tmp_path / "bad_records.csv").is_file()
