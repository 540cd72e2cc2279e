"""EchoNext in its own layout, and signals that are z-scores instead of millivolts."""

import numpy as np
import pytest
import yaml

from cache import open_records
from cache.errors import UsageError
from cache.record_rows import RecordRows
from cache.signals import LEADS
from stages.cohorts import open_cohort
from stages.embed import Embedder, EmbedPaths, EmbedSettings
from stages.readers.files import read_ecg
from stages.readers.rows import RowOptions
from tests.ingesting import ingested
from tests.stages.wfdb_files import ecg_mv, write_record


@pytest.fixture
def echonext(tmp_path):
    folder = tmp_path / "echonext"
    folder.mkdir()
    lines = ["ecg_key,patient_key,age_at_ecg,sex,lvef_lte_45_flag,lvef_value,tr_max_gte_32_flag,tr_max_velocity_value,"]
    lines[0] += "shd_moderate_or_greater_flag,split"
    rows = [("train", 1, 30, 0, ""), ("no_split", 0, 60, 0, ""), ("val", 0, "", 1, 3.5), ("train", 0, 55, 0, 2.0)]
    rows += [("test", 1, 40, 0, ""), ("no_split", 1, 20, 1, 4.0)]
    patients = ["a", "b", "b", "a", "c", "c"]
    for k, (split, flag, lvef, tr, velocity) in enumerate(rows):
        lines.append(f"e{k},{patients[k]},{60 + k},{'fe' * (k % 2)}male,{flag},{lvef},{tr},{velocity},{flag},{split}")
    (folder / "echonext_metadata_100k.csv").write_text("\n".join(lines) + "\n")
    rng = np.random.default_rng(0)
    for split, n in (("train", 2), ("val", 1), ("test", 1)):
        np.save(folder / f"EchoNext_{split}_waveforms.npy", rng.standard_normal((n, 1, 2500, 12)))
    return folder


def test_echonext(echonext, tmp_path):
    frame, rows, summary = ingested("echonext", echonext, tmp_path)
    assert summary.n_bad == 0
    assert frame.index.tolist() == ["e0", "e2", "e3", "e4"]
    assert frame["split"].tolist() == ["train", "val", "train", "test"]
    assert frame["lvef_lte_45"].isna().tolist() == [False, True, False, False]
    assert frame["tr_max_gte_32"].isna().tolist() == [True, False, False, True]
    assert frame["shd_moderate_or_greater"].tolist() == [1, 0, 0, 1]
    assert any("2 rows without a split are left out" in note for note in summary.notes)
    assert any("1 of 4 were not measured and are null" in note for note in summary.notes)
    train = np.load(echonext / "EchoNext_train_waveforms.npy")
    assert np.abs(rows["e3"] - train[1, 0].T).max() <= 0.00051
    assert all("z-scores: one deviation is stored as 1 mV" in notes for notes in frame["notes"])


def test_echonext_says_that_it_has_no_millivolts(echonext, tmp_path):
    frame, _, summary = ingested("echonext", echonext, tmp_path)
    table = tmp_path / "out" / "r.parquet"
    assert open_records(table).attrs["row_options"]["amplitude"] == "z-score"
    assert RecordRows(table).row_options["amplitude"] == "z-score"
    assert any("signals are z-scores" in note for note in summary.notes)
    # Leads of a scale of their own break Einthoven's equations: nothing is to be suspected, and no factor advised.
    assert frame["limb_swap"].isna().all()
    assert not any(note.startswith("amplitude: ") for notes in frame["notes"] for note in notes)
    with pytest.raises(UsageError, match="derive_leads: the signals of echonext are z-scores"):
        ingested("echonext", echonext, tmp_path, derive_leads=True)


def test_experts_that_need_millivolts_are_refused_one_by_one_unless_asked(echonext, tmp_path):
    ingested("echonext", echonext, tmp_path)
    out = tmp_path / "out"

    def embedder(name, **asked):
        return Embedder(EmbedSettings(name, **asked), EmbedPaths(out / "r.parquet", out / "s.zarr", out / name, out))

    words = r"expert 'seed' needs millivolts, and the signals of echonext are z-scores; .*experts\.seed\.zscores_as_mv"
    with pytest.raises(UsageError, match=words) as caught:
        embedder("seed")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="expert 'morphology' needs millivolts"):
        embedder("morphology")
    assert embedder("seed", zscores_as_mv=True).run().n_embedded == 4
    # This one ranks the samples of each lead: what a unit of them is changes nothing.
    assert embedder("openecg").run().n_embedded == 4


def test_the_command_refuses_and_takes_z_scores_as_the_study_or_the_option_says(
    echonext, tmp_path, monkeypatch, ensemble
):
    study = tmp_path / "study"
    study.mkdir()
    params = {"cohort": {"source": "echonext", "path": str(echonext)}, "experts": {"seed": None}}
    params["machine"] = {"device": "cpu", "workers": 1}
    (study / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(study)
    assert ensemble("ingest")[0] == 0
    code, _, err = ensemble("embed", "--expert", "seed")
    assert code == 2
    assert "expert 'seed' needs millivolts, and the signals of echonext are z-scores" in err
    assert ensemble("embed", "--expert", "seed", "--zscores-as-mv", "--dry-run")[0] == 0
    params["experts"] = {"seed": {"zscores_as_mv": True}}
    (study / "params.yaml").write_text(yaml.safe_dump(params))
    code, _, err = ensemble("embed", "--expert", "seed")
    assert code == 0, err


def test_a_study_of_z_scores_says_of_new_ecgs_that_they_are_in_millivolts(tmp_path):
    write_record(tmp_path, "r", ecg_mv(), LEADS, "mV", 1000.0)
    in_z_scores = RowOptions.from_json({"amplitude": "z-score"})
    assert any("learnt from z-scores" in warning for warning in read_ecg(tmp_path / "r", in_z_scores).warnings)
    assert not any("z-scores" in warning for warning in read_ecg(tmp_path / "r").warnings)
    assert "amplitude" not in RowOptions().to_json()  # tables of millivolts keep their bytes


def test_arrays_may_be_z_scores(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((2, 12, 1000)))
    ingested("arrays", tmp_path, tmp_path, {"file": "a.npy", "rate_hz": 100.0, "units": "z-score"})
    assert open_records(tmp_path / "out" / "r.parquet").attrs["row_options"]["amplitude"] == "z-score"


def test_echonext_flags_as_published(echonext):
    found = open_cohort("echonext", echonext, {"unmeasured": "negative"}).entries()
    assert found.frame["lvef_lte_45"].tolist() == [1, 0, 0, 1]
