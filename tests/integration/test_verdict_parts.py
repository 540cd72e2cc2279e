"""The verdict judges no expert on patients whose labels taught it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.verdict.cohorts import rotations
from benchmarks.verdict.parts import Encoders, experts_of, parts_of
from benchmarks.verdict.scoring import with_base_rates
from cache.records import Target, open_records, write_records

EXPERTS = ("rocket", "seed")
N_ROTATIONS = 2


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, make_cohort) -> tuple[Path, np.ndarray]:
    """PTB-XL of 60 generated records, and networks that have learnt from all rotations but their own."""
    folder = tmp_path_factory.mktemp("verdict")
    make_cohort(folder, 60)
    records = open_records(folder / "records.parquet")
    targets: list[Target] = list(records.attrs["targets"].values())
    patients = records["patient_id"].to_numpy().astype(str)
    (folder / "ptbxl/vectors").mkdir(parents=True)
    for name in ("rocket", "seed", "seed-ssl"):
        np.savez(folder / f"ptbxl/vectors/{name}.npz", embedding=np.ones((60, 3)), layers=np.ones((60, 2, 3)))
    for k in range(N_ROTATIONS):
        for home in (folder / f"encoders/{k}", folder / f"encoders/{k}-1"):
            home.mkdir(parents=True)
            np.savez(home / "seed.npz", embedding=np.full((60, 4), k))
        tested = np.isin(np.arange(60), rotations(patients, None)[k][2])
        write_records(
            folder / f"encoders/{k}/records.parquet", records.assign(split=np.where(tested, "test", "train")), targets
        )
    return folder, patients


@pytest.mark.parametrize("size", [4, None])
def test_who_is_tested_has_not_taught_the_networks(study, size) -> None:
    folder, patients = study
    parts = list(parts_of(folder / "ptbxl", EXPERTS, patients, size, N_ROTATIONS, Encoders(folder, 2)))
    for k, part in enumerate(parts):
        assert part.features["seed"]["embedding"].shape == (60, 8)
        assert (part.features["seed"]["embedding"] == k).all()
        outside = np.setdiff1d(np.arange(60), rotations(patients, None)[k][2])
        for train, val, test in part.splits:
            assert not set(patients[test]) & set(patients[outside])
            assert not set(patients[test]) & set(patients[np.concatenate([train, val])])
            taught = part.seen.get("seed", np.empty(0, int))
            assert (len(np.unique(patients[np.concatenate([train, val])])) == 4) if size else set(train) <= set(taught)
    tested = np.concatenate([test for part in parts for _, _, test in part.splits])
    assert sorted(tested) == sorted(np.concatenate([rotations(patients, None)[k][2] for k in range(N_ROTATIONS)]))


def test_without_such_networks_one_that_knows_no_label_takes_their_place(study) -> None:
    folder, patients = study
    (part,) = parts_of(folder / "ptbxl", EXPERTS, patients, None, 5, None)
    assert list(part.features) == ["rocket", "seed-ssl"]
    assert len(part.splits) == 5
    assert experts_of("ludb", EXPERTS, None) == EXPERTS


def test_base_rates_are_those_of_the_labels_of_each_split() -> None:
    truth = np.array([1.0, 0, 0, 0, 1, 1])
    tested, labelled = np.array([1, 1, 1, 0, 0, -1]), np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]], bool)
    p = np.full(6, 0.2)
    raised = with_base_rates(p, truth, tested, labelled)
    # a record more of either class: a shift by log(2 / 3 * 2.5 / 1.5) of one positive in three, none of one in two
    odds = 0.2 / 0.8 * (2 * 2.5) / (3 * 1.5)
    assert raised[3:5] == pytest.approx(odds / (1 + odds))
    assert raised[[0, 1, 2, 5]] == pytest.approx(0.2)
