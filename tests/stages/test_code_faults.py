"""Faults of an expert's code stop the run, with record and line; faults of a record cost that record's vector."""

import numpy as np
import pytest

from cache import open_embeddings, open_signals
from cache.errors import EnsembleError, ExpertCodeError, InputError, UsageError
from stages.experts.faults import Faults
from stages.experts.options import plain_options
from tests.stages.third_party import PARTS, example_code, install

EMBED = ("embed", "--expert", "band-power", "--device", "cpu", "--workers", "1")
BUG = PARTS["prepare"] + "        raise IndexError('list index out of range')\n"
CODE_LINE = "installed_band_power.py:"


@pytest.fixture
def embed(toy_study, tmp_path, monkeypatch, ensemble):
    """Install the page's expert, changed, and embed with it."""
    monkeypatch.chdir(toy_study)

    def run(*options, **changes):
        install(tmp_path / "site", example_code(**changes), monkeypatch)
        return ensemble(*EMBED, *options)

    return run


@pytest.mark.parametrize("error", ["ValueError", "IndexError", "ZeroDivisionError", "TypeError", "KeyError"])
def test_a_bug_in_prepare_stops_the_run_and_the_mended_expert_embeds_everything(toy_study, embed, error):
    bug = PARTS["prepare"] + f"        raise {error}('no such thing')\n"
    ended = embed(prepare=bug)
    line = bug_line(bug)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"expert 'band-power' fails at record 'r0002': {error} at" in ended.stderr
    assert f"{CODE_LINE}{line}: " in ended.stderr
    assert len(open_embeddings(toy_study / "embeddings/band-power.zarr").pending()) == 10
    mended = embed()
    assert mended.returncode == 0, mended.stderr
    assert "40 records embedded" in mended.stdout
    assert "1 without a vector" in mended.stdout


def bug_line(bug):
    lines = example_code(prepare=bug).splitlines()
    return next(number for number, line in enumerate(lines, 1) if "no such thing" in line)


def test_one_record_at_which_code_fails_is_told_and_the_others_are_embedded(toy_study, embed):
    signals = open_signals(toy_study / "signals.zarr").read_mv(slice(0, 8))
    odd = f"        if (np.abs(signals_mv[:, 0, 7] - {signals[5, 0, 7]!r}) < 1e-9).any(): raise ValueError('odd')\n"
    ended = embed(prepare=PARTS["prepare"] + odd.replace("np.float64", "float").replace("np.float32", "float"))
    assert ended.returncode == 0, ended.stderr
    assert "2 without a vector" in ended.stdout
    assert "no vector for r0005: ValueError at " in ended.stdout


def test_a_record_that_the_expert_refuses_is_that_records_fault(toy_study, embed):
    refusing = PARTS["prepare"] + "        raise InputError('too short')\n"
    ended = embed(prepare=refusing)
    assert ended.returncode == 0, ended.stderr
    assert "no vector for r0000: too short" in ended.stdout
    assert not open_embeddings(toy_study / "embeddings/band-power.zarr").pending()


def test_a_bug_in_encode_names_its_line_and_stores_nothing(toy_study, embed):
    ended = embed(encode=PARTS["encode"] + "        raise ValueError('bad shape')\n")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "expert 'band-power' fails in encode" in ended.stderr
    assert f"{CODE_LINE}" in ended.stderr
    assert len(open_embeddings(toy_study / "embeddings/band-power.zarr").pending()) == 10


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("layer_dims=(WIDTH,), embedding_dim=24,\n", "embedding_dim 24, its encode gives 48"),
        ("layer_dims=(24,), embedding_dim=WIDTH,\n", "layer_dims (features) 24, its encode gives 48"),
        ("layer_dims=(WIDTH,), embedding_dim=WIDTH, output_dim=3,\n", "output_dim 3, its encode gives none"),
    ],
)
def test_a_spec_with_a_wrong_width_is_told_at_the_first_batch(toy_study, embed, stated, said):
    ended = embed(widths=f"            {stated}")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"expert 'band-power': its spec says {said}" in ended.stderr
    assert len(open_embeddings(toy_study / "embeddings/band-power.zarr").pending()) == 10


def raised(error):
    try:
        raise error
    except Exception as caught:
        return caught


def test_faults_count_the_same_line_in_a_row_alone():
    faults = Faults("mine")
    for _ in range(2):  # two alike, then a record that works: no fault of the code
        assert "ValueError at " in faults.failed("r", raised(ValueError("odd")))
        assert "ValueError at " in faults.failed("r", raised(ValueError("odd")))
        faults.succeeded()
    for _ in range(9):
        assert faults.failed("r", raised(InputError("too short"))) == "too short"
    faults.failed("r1", raised(ValueError("odd")))
    faults.failed("r2", raised(KeyError("odd")))
    faults.failed("r3", raised(ValueError("odd")))
    faults.failed("r4", raised(ValueError("odd")))
    with pytest.raises(ExpertCodeError, match=r"record 'r5'.*3 records in a row"):
        faults.failed("r5", raised(ValueError("odd")))


@pytest.mark.parametrize("error", [UsageError("--weights"), EnsembleError("disk"), MemoryError()])
def test_errors_that_say_nothing_of_a_record_are_passed_on(error):
    with pytest.raises(type(error)):
        Faults("mine").failed("r", error)


def test_a_cohort_of_two_records_stops_when_both_fail():
    faults = Faults("mine", stop_after=2)
    faults.failed("r1", raised(ValueError("odd")))
    with pytest.raises(ExpertCodeError):
        faults.failed("r2", raised(ValueError("odd")))


def test_another_option_of_the_preprocessing_makes_the_store_again(toy_study, embed):
    assert embed().returncode == 0
    store = toy_study / "embeddings/band-power.zarr"
    before = open_embeddings(store).fingerprint
    narrower = embed("--replace", bands="BANDS_HZ = ((0.5, 5.0), (5.0, 15.0), (15.0, 40.0), (40.0, 90.0))\n")
    assert narrower.returncode == 0, narrower.stderr
    assert "40 records embedded" in narrower.stdout
    assert open_embeddings(store).fingerprint != before
    assert open_embeddings(store).attributes["preprocessing_options"]["bands_hz"][3] == [40.0, 90.0]


def test_preprocessing_that_json_cannot_hold_is_told():
    assert plain_options("mine", {"a": np.float64(0.5), "b": np.arange(2)}) == {"a": 0.5, "b": [0, 1]}
    with pytest.raises(ExpertCodeError, match=r"expert 'mine': spec.preprocessing.*function"):
        plain_options("mine", {"window": raised})
