"""From an expert's own training to the fit: the embedding store names the patients, and the gate counts them not."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

from cache import records_digest
from cache.patients import LABELLED_TRAINING, patient_digests, records_seen, training_entry
from cache.records import Target, write_records
from cache.storage.locations import location_of
from stages.embed import EmbedSettings
from stages.embed.stage import identity_of
from stages.experts import expert_class
from stages.experts.checkpoints import PACKAGE_FOLDER
from stages.experts.versions import labelled_training
from stages.fit_heads import FitHeadsPaths, FitHeadsSettings, run

SEED = expert_class("seed")[0].published_spec()
N = 120


def write_version_facts(name: str, made_by: str, parent: str | None, pretrained_on: list[str], patients: int) -> None:
    folder = Path("weights/versions") / name
    folder.mkdir(parents=True)
    facts = {"schema_version": 1, "name": name, "base": "seed", "config": {}, "preprocessing": None}
    facts |= {"made_by": made_by, "parent": parent, "pretrained_on": pretrained_on, "cohort": {"sources": ["here"]}}
    (folder / "version.json").write_text(json.dumps(facts))
    np.save(folder / "seen_patients.npy", np.arange(patients, dtype=np.uint64))


def test_a_store_of_packaged_weights_names_their_patients_and_one_of_other_weights_nobody():
    attributes = identity_of(EmbedSettings(expert="seed"), "", "").facts
    [entry] = attributes[LABELLED_TRAINING]
    assert entry["sources"] == ["ptbxl"]
    packaged = np.load(PACKAGE_FOLDER / SEED.weights.patients)
    assert entry == training_entry(["ptbxl"], packaged, b"seed 3")
    for unlabelled in ("rocket", "seed-ssl"):
        assert LABELLED_TRAINING not in identity_of(EmbedSettings(expert=unlabelled), "", "").facts
    assert labelled_training("seed", SEED, "of other weights") == []


def test_a_version_counts_the_patients_whose_labels_made_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_version_facts("seed+blind", "pretrain", None, [], 3)
    write_version_facts("seed+tuned", "posttrain", "seed+blind", [], 5)
    write_version_facts("seed+more", "posttrain", "seed", ["ptbxl"], 7)
    assert labelled_training("seed+blind", SEED, "") == []
    [entry] = labelled_training("seed+tuned", SEED, "")
    assert entry == training_entry(["here"], np.arange(5, dtype=np.uint64))
    own, packaged = labelled_training("seed+more", SEED, "")
    assert own == training_entry(["here"], np.arange(7, dtype=np.uint64))
    assert packaged["key"] == "seed 3"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Records, and stores of two experts that another tool might have written."""
    folder, rng = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    u = rng.normal(size=N)
    records = pd.DataFrame(
        {
            "record_id": [f"r{k}" for k in range(N)],
            "patient_id": [str(k // 2) for k in range(N)],
            "source": "mine",
            "split": np.array(["train", "val", "test"])[np.arange(N) // 2 % 10 // 2 % 3],
            "fold": np.arange(N) // 2 % 5,
            "path": "",
            "sampling_rate_hz": 500.0,
            "n_samples": 5000,
            "nan_fraction": 0.0,
            "flat_leads": [[] for _ in range(N)],
            "missing_leads": [[] for _ in range(N)],
            "clipped_fraction": 0.0,
            "status": "ok",
            "reason": "",
            "flag": (u + 0.5 * rng.normal(size=N) > 0).astype(float),
        }
    )
    target = Target("flag", "binary", classes=("no", "yes"))
    write_records(folder / "records.parquet", records, [target], {}, {})
    for name in ("one", "two"):
        group = zarr.create_group(
            folder / f"{name}.zarr", attributes={"records_digest": records_digest(records["record_id"])}
        )
        x = (u[:, None] + rng.normal(size=(N, 6))).astype(np.float32)
        group.create_array("layers", data=x[:, None])
        group.create_array("embedding", data=x)
        group.create_array("done", data=np.ones(N, bool))
    return folder, records


@pytest.mark.parametrize("everybody", [True, False])
def test_a_fit_says_whose_patients_it_did_not_count(study, everybody):
    folder, records = study
    listed = records if everybody else records.iloc[:0]
    elsewhere = np.arange(300, dtype="<u8")  # patients of another study whose labels taught it, too
    entry = training_entry(["mine"], np.union1d(patient_digests(listed, b"k"), elsewhere), b"k")
    zarr.open_group(folder / "two.zarr", mode="r+").attrs[LABELLED_TRAINING] = [entry]
    stores = {name: location_of(folder / f"{name}.zarr") for name in ("one", "two")}
    paths = FitHeadsPaths(folder / "records.parquet", location_of(folder / "signals.zarr"), stores, folder / "heads")
    summary = run(FitHeadsSettings(options={"lora": False, "gate_epochs": 0}), paths)
    history = json.loads((folder / "heads" / "config.json").read_text())["history"]["gate"]
    if not everybody:
        assert summary.notes == ()
        assert "held" not in history
        return
    [note] = summary.notes
    n_judging = records[records["split"] != "test"]["patient_id"].nunique()
    assert note.startswith(f"two was trained on {n_judging} of the {n_judging} patients")
    start = np.sqrt((records["patient_id"].nunique() + len(elsewhere)) / n_judging)
    assert history["held"]["two"]["share"] == [[pytest.approx(start / (1 + start), abs=1e-5)]]
    assert records_seen({LABELLED_TRAINING: [entry]}, records).all()
