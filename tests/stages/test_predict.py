"""New ECGs are made into rows and embedded as the study's own were, and what is wrong with them is said."""

import numpy as np
import pytest
import yaml

from cache import open_embeddings, open_records, open_signals
from cache.errors import InputError, MissingFileError, UsageError
from stages.experts.run import RunSettings, set_precision
from stages.heads import EnsembleHeads
from stages.heads.decisions.answers import Decisions
from stages.learning.data import expert_parts
from stages.predict import row_options
from stages.predict.answering import Answerer
from stages.predict.batches import RecordBatch
from stages.predict.stage import _in_memory
from stages.predict.tables import part_tables, read_part, write_part
from stages.readers.files import find_ecgs, read_ecg
from stages.readers.rows import RowOptions
from tests.integration.end_to_end import Case, embedded, ingested, small_and_saved, write_case
from tests.stages import heads_study

CASES = [
    Case(500, 10.0, "eight leads"),
    Case(360, 10.0, "mimic", "uV"),
    Case(1000, 15.0, "reversed"),
    Case(250, 5.0),
    Case(500, 2.5, "standard", "V"),
]


def test_a_fit_remembers_how_its_rows_were_made():
    heads = EnsembleHeads()
    heads.provenance_ = {"rows": {"derive_leads": True, "pace_spikes": False, "seconds": None}}
    assert row_options(heads) == RowOptions(derive_leads=True, seconds=None)
    heads.provenance_ = {}
    assert row_options(heads) == RowOptions()


def fit_of(expert):
    """What of a fit embedding needs."""
    heads = EnsembleHeads()
    heads.decisions_ = Decisions()
    heads.experts_, heads.provenance_ = (expert,), {"identities": {}, "dtypes": {expert: "float16"}}
    return heads


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_predict_computes_the_stored_vectors_to_the_last_bit(tmp_path, precision):
    study = ingested(tmp_path, CASES, 10.0, derive_leads=True)
    kept = open_records(tmp_path / "records.parquet").attrs["row_options"]
    recorded = [read_ecg(tmp_path / "files" / case.name, RowOptions.from_json(kept)) for case in study.cases]
    signals = open_signals(tmp_path / "signals.zarr")
    for row, record in enumerate(recorded):
        [(_, signals_mv, rate_hz)] = signals.read_groups(slice(row, row + 1))
        assert rate_hz == record.rate_hz
        np.testing.assert_array_equal(signals_mv[0], record.signals_mv)
    for name in ("ecgfm", "ttm"):
        expert, weights = small_and_saved(name, tmp_path)
        embedded(study, name, weights, precision=precision, dtype="float16", batch_size=2)
        stored = expert_parts(open_embeddings(tmp_path / "embeddings" / f"{name}.zarr"))
        set_precision(expert, precision)
        for row, record in enumerate(recorded):
            batch = _in_memory([record._replace(warnings=())], heads := fit_of(name))
            answerer = Answerer(heads, {name: expert}, {}, RunSettings())
            parts = answerer.features(answerer.prepare(batch))[name]
            assert parts.keys() == stored.keys()
            for part, values in parts.items():
                np.testing.assert_array_equal(values[0], stored[part][row], err_msg=f"{name} {part} {study.cases[row]}")
            [warnings] = batch.warnings
            refused = [w for w in warnings if w.startswith(f"expert {name} gave nothing: expert ")]
            assert len(refused) == len(warnings) == np.isnan(stored["embedding"][row]).all()


def test_warnings_say_what_is_wrong_with_a_record(tmp_path):
    for case in (Case(500, 10.0), Case(250, 5.0, "eight leads")):
        write_case(tmp_path, case)
    good, short = Case(500, 10.0).name, Case(250, 5.0, "eight leads").name
    assert read_ecg(tmp_path / good).warnings == ()
    warned = read_ecg(tmp_path / f"{short}.hea", RowOptions(derive_leads=True)).warnings
    assert "short record: 5.0 s of 10 s" in warned
    assert "missing leads: III, aVR, aVL, aVF" in warned
    assert "leads computed from I and II: III, aVR, aVL, aVF" in warned
    header = tmp_path / f"{good}.hea"
    text = header.read_text()
    header.write_text(text.replace("1000(0)/mV", "40(0)/mV"))
    assert any(
        w.startswith("amplitude: waves of ") and w.endswith("(cohort.options: {scale: 0.001})")
        for w in read_ecg(tmp_path / good).warnings
    )
    names = dict(zip(("I", "III"), ("III", "I"), strict=True))
    lines = [line.rsplit(" ", 1) for line in text.splitlines()]
    header.write_text("\n".join(f"{first} {names.get(last, last)}" for first, last in lines) + "\n")
    assert "limb leads look exchanged: labels I/III" in read_ecg(tmp_path / good).warnings
    counts = np.fromfile(tmp_path / f"{good}.dat", dtype="<i2").reshape(-1, 12)
    counts[200::500] += 3000
    counts.tofile(tmp_path / f"{good}.dat")
    header.write_text(
        "\n".join(
            " ".join([*line.split()[:6], "0", *line.split()[7:]]) if k else line
            for k, line in enumerate(text.splitlines())
        )
        + "\n"
    )
    assert any(w.startswith("pacemaker spikes: ") for w in read_ecg(tmp_path / good).warnings)


def test_folders_are_searched_and_what_is_not_there_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    for case in CASES[:2]:
        write_case(tmp_path / "a", case)
    found = find_ecgs([tmp_path, tmp_path / "a" / f"{CASES[0].name}.dat"])
    assert sorted(path.name for path in found[:2]) == sorted(case.name for case in CASES[:2])
    assert len(found) == 3
    (tmp_path / "empty").mkdir()
    for wrong, error in (
        (["nowhere"], MissingFileError),
        ([str(tmp_path / "empty")], MissingFileError),
        ([""], UsageError),
    ):
        with pytest.raises(error):
            find_ecgs(wrong)
    (tmp_path / "a" / f"{CASES[0].name}.dat").write_bytes(b"")
    with pytest.raises(InputError, match=f"{CASES[0].name}: .*cut short"):
        read_ecg(tmp_path / "a" / CASES[0].name)


@pytest.fixture
def linked(tmp_path):
    """A folder of one record and of links to another one, to an EDF-like file and to a folder."""
    for folder in ("big", "subset"):
        (tmp_path / folder).mkdir()
    for folder, case in zip(("big", "subset"), CASES, strict=False):
        write_case(tmp_path / folder, case)
    for suffix in (".hea", ".dat"):
        name = CASES[0].name + suffix
        (tmp_path / "subset" / name).symlink_to(tmp_path / "big" / name)
    (tmp_path / "subset" / "more").symlink_to(tmp_path / "big")
    return tmp_path / "subset"


def test_links_are_followed_where_that_is_asked_for_and_named_elsewhere(linked):
    notes: list[str] = []
    assert [path.name for path in find_ecgs([linked], notes=notes)] == [CASES[1].name]
    assert any(note.startswith("links to folders are not followed: 'more'; ") for note in notes)
    assert any(CASES[0].name in note and "--follow-links" in note for note in notes)
    found = find_ecgs([linked], follow_links=True, notes=notes[:0])
    assert [str(path.relative_to(linked)) for path in found] == sorted(
        [CASES[0].name, CASES[1].name, f"more/{CASES[0].name}"]
    )
    with pytest.raises(InputError, match=r"through a link; .*--follow-links\) allows it"):
        read_ecg(linked / CASES[0].name)
    for path in found:
        case = next(case for case in CASES if case.name == path.name)
        assert read_ecg(path, follow_links=True).rate_hz == case.rate_hz
    for name in (f"{CASES[1].name}.hea", f"{CASES[1].name}.dat"):
        (linked / name).unlink()
    with pytest.raises(MissingFileError, match=r"no ECG is in this folder; links .*'more'; .*--follow-links"):
        find_ecgs([linked])


def test_predict_goes_past_unreadable_records_and_follows_links_where_asked(ensemble, toy_study, linked, monkeypatch):
    """One fit serves both: an unreadable record is named after the predictions of the others; links."""
    monkeypatch.chdir(toy_study)
    for arguments in (["embed", "--expert", "ecgfm"], ["fit-heads"]):
        done = ensemble(*arguments)
        assert done.returncode == 0, done.stderr
    (toy_study / "new").mkdir()
    for case in CASES[1:4]:
        write_case(toy_study / "new", case)
    header = (toy_study / "new" / f"{CASES[1].name}.hea").read_text()
    (toy_study / "new" / "lost.hea").write_text(header.replace(CASES[1].name, "lost"))
    done = ensemble("predict", "new", "--json")
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 3
    assert "lost: " in done.stderr
    assert "1 of 4 records cannot be read" in done.stderr
    assert ensemble("predict", f"new/{CASES[1].name}", "--json").returncode == 0
    alone = ensemble("predict", str(linked), "--json")
    assert (alone.returncode, len(alone.stdout.splitlines())) == (0, 1)
    assert "note: links to folders are not followed" in alone.stderr
    asked = ensemble("predict", str(linked), "--json", "--follow-links", "--batch-size", "3", "--threads", "1")
    assert (asked.returncode, len(asked.stdout.splitlines())) == (0, 3), asked.stderr
    assert alone.stdout in asked.stdout
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    params["cohort"]["options"] = {"follow_links": True}
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    assert ensemble("predict", str(linked), "--json").stdout == asked.stdout
    assert ensemble("predict", str(linked), "--json", "--no-follow-links").stdout == alone.stdout
    refused = ensemble("predict", str(linked), "--batch-size", "none")
    assert (refused.returncode, "--batch-size none" in refused.stderr) == (2, True)


def test_a_part_says_of_every_kind_of_task_what_the_heads_say(tmp_path):
    heads, features, _, _ = heads_study.fitted_study()
    heads.decisions_ = Decisions.choose(heads.held_out_, heads.tasks_)
    batches = []
    for rows in (np.arange(0, 5), np.arange(5, 8)):
        given, signal = heads_study.arguments(features, rows)
        given["wide"][:, :] = np.where(rows[:, None] == 2, np.nan, given["wide"])
        given["layered"] = {name: np.array(part, dtype=float) for name, part in given["layered"].items()}
        for part in given["layered"].values():
            part[rows == 2] = np.nan
        batch = RecordBatch([f"r{row}" for row in rows], [None] * len(rows), [[] for _ in rows])
        batches.append((batch, heads.answers(given, gate_signal=signal)))
    batches[0][0].unreadable[2] = "lost"
    batches[1][0].warnings[1] += ["flat leads: I", "short"]
    write_part(part_tables(batches, heads), tmp_path / "part")
    predictions, weights, warnings = (table.to_pandas() for table in read_part(tmp_path / "part"))
    means = {name: np.concatenate([a.means[name] for _, a in batches]) for name in ("rr", "sex", "report", "super")}
    kept = np.arange(8) != 2
    for task in heads.tasks_:
        of_task = predictions[predictions["task"] == task.name]
        for number, label in enumerate(task.classes if task.kind in ("multiclass", "multilabel") else [None]):
            rows = of_task[of_task["class"].isna() if label is None else of_task["class"] == label]
            assert rows["record_id"].tolist() == [f"r{k}" for k in range(8) if k != 2]
            expected = means[task.name].reshape(8, -1)[kept, number]
            np.testing.assert_array_equal(rows["y_pred"], expected.astype(np.float32))
            for (_, row), value in zip(rows.iterrows(), means[task.name][kept], strict=True):
                said = heads.decisions_.of(task, value)
                if task.kind == "regression":
                    assert (row["low"], row["high"]) == pytest.approx((said["low"], said["high"]))
                elif task.kind == "multiclass":
                    assert (row["in_set"], row["uncertain"]) == (label in said["set"], said["uncertain"])
                    assert row["above_threshold"] == said["above"][label]
                elif task.kind == "multilabel":
                    assert row["above_threshold"] == said["above"][label]
                    assert (row["in_set"], row["uncertain"]) == (
                        "present" in said["sets"][label],
                        label in said["uncertain"],
                    )
    gate = weights.groupby(["record_id", "task"], observed=True)["weight"].sum()
    assert len(gate) == 7 * 4
    np.testing.assert_allclose(gate, 1, rtol=1e-5)
    assert warnings.to_numpy().tolist() == [
        ["r2", "unreadable", "lost"],
        ["r6", "warning", "flat leads: I"],
        ["r6", "warning", "short"],
    ]
