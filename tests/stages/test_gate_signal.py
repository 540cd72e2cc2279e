"""What a gate reads of the signal: summarised shard by shard, of leads that one may choose, the same in every stage."""

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from cache import open_records, open_signals
from cache.errors import UsageError
from cache.signals import LEADS
from pipeline.compute.embedding import embed_settings
from pipeline.study.folder import Study
from stages.embed import describe, load_for
from stages.fit_heads import FitHeadsPaths, FitHeadsSettings, run
from stages.heads import EnsembleHeads
from stages.learning.data import expert_identity
from stages.learning.gate_signal import gate_signal, leads_of, read_gate_signal
from stages.predict import Prediction, predict
from stages.readers.files import Recorded

SIX = ("II", "V1", "V2", "V3", "V4", "V5")  # their summaries side by side are longer than the shortest waveform


@pytest.mark.parametrize("leads", [("II",), SIX])
def test_summaries_by_shard_give_the_fit_that_the_leads_themselves_give(tmp_path, make_cohort, leads):
    make_cohort(tmp_path, 60)  # shards of 16; one record missing throughout, one without a lead
    records, store = open_records(tmp_path / "records.parquet"), open_signals(tmp_path / "signals.zarr")
    rng, y = np.random.default_rng(0), records["sex"].to_numpy(float)
    told = rng.random(60) < 0.5  # whom to believe stands in the signal: the gate has something to learn
    own = [np.where(told == k, 3 * y, rng.normal(size=60))[:, None] for k in range(2)]
    x = {name: part + rng.normal(size=(60, 4)) for name, part in zip("ab", own, strict=True)}
    signals = store.read_mv(slice(0, 60)) * (1 + told[:, None, None])
    raw = np.stack([signals[:, LEADS.index(lead)] for lead in leads], 1)
    one_by_one = np.concatenate([gate_signal(signals[k : k + 1], leads) for k in range(60)])
    np.testing.assert_array_equal(one_by_one, gate_signal(signals, leads))
    rows = np.arange(60)
    fits = [
        EnsembleHeads(gate_input="signal", lora=False, gate_epochs=8, on_unusable="skip").fit(
            x, {"sex": y}, splits=[(rows[:40], rows[40:50], rows[50:])], gate_signal=given
        )
        for given in (raw, one_by_one)
    ]
    np.testing.assert_array_equal(fits[0].models_[0].signal_scale.mean, fits[1].models_[0].signal_scale.mean)
    weights = [
        fit.gate_weights(x, gate_signal=given)["sex"] for fit, given in zip(fits, (raw, one_by_one), strict=True)
    ]
    np.testing.assert_array_equal(*weights)
    assert np.ptp(weights[0][:, 0]) > 0, "the gate does read the signal"


@pytest.mark.slow
def test_the_chosen_leads_are_those_of_fit_evaluation_and_prediction(toy_study, monkeypatch, ensemble):
    monkeypatch.chdir(toy_study)
    params = yaml.safe_load((toy_study / "params.yaml").read_text())
    options = {"gate_input": "signal", "gate_leads": ["V1", "II", "V6"], "lora_epochs": 1}
    params |= {"fit_heads": {"options": options}, "evaluate": {"bootstrap": 100}, "tasks": ["age"]}
    (toy_study / "params.yaml").write_text(yaml.safe_dump(params))
    for command in (["embed", "--expert", "ecgfm"], ["fit-heads"], ["evaluate"]):
        done = ensemble(*command)
        assert done.returncode == 0, done.stderr
    heads = EnsembleHeads.load(toy_study / "heads")
    assert leads_of(heads) == ("V1", "II", "V6")
    signals = open_signals("signals.zarr").read_mv(slice(0, 40))
    seen = gate_signal(signals, ("V1", "II", "V6"))
    np.testing.assert_array_equal(read_gate_signal(heads, toy_study / "signals.zarr", leads_of(heads)), seen)
    train = (open_records("records.parquet")["split"] == "train").to_numpy() & (np.arange(40) != 3)
    scale = heads.models_[0].signal_scale
    np.testing.assert_allclose(scale.mean, seen[train].reshape(train.sum(), -1).mean(0), rtol=1e-5, atol=1e-6)
    settings = embed_settings(Study(), "ecgfm")
    given = []
    whole = EnsembleHeads.answers
    monkeypatch.setattr(
        EnsembleHeads,
        "answers",
        lambda *a, gate_signal: given.append(gate_signal) or whole(*a, gate_signal=gate_signal),
    )
    record = Recorded("new", signals[7], 500.0)
    told = predict([record], heads, {"ecgfm": load_for(settings)}, {"ecgfm": expert_identity(describe(settings))})
    assert [type(one) for one in told] == [Prediction]
    np.testing.assert_array_equal(given[0], seen[7:8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_input": "signal", "gate_leads": ["II", "MLII"]}, "a list of different leads"),
        ({"gate_input": "signal", "gate_leads": "II"}, "a list of different leads"),
        ({"gate_input": "signal", "gate_leads": []}, "a list of different leads"),
        ({"gate_input": "signal", "gate_leads": ["II", "II"]}, "a list of different leads"),
        ({"gate_lead": ["II"]}, "Extra inputs are not permitted"),
    ],
)
def test_leads_that_cannot_be_read_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        FitHeadsSettings(options=options)


def test_leads_for_a_gate_that_reads_no_signal_are_refused(tmp_path):
    paths = FitHeadsPaths(tmp_path / "r", tmp_path / "s", {}, tmp_path / "heads")
    with pytest.raises(UsageError, match="the gate reads no signal; let gate_input name it, too"):
        run(FitHeadsSettings(options={"gate_leads": ["II"]}), paths)
