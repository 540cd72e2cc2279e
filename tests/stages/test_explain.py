"""An explanation points at what was planted, and at nothing where heads are random."""

import json

import numpy as np
import pytest
import yaml
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cache.errors import InputError
from cache.signals import LEADS
from stages.experts import load_expert
from stages.experts.run import Signal, embed_records
from stages.explain import ExplainPaths, ExplainSettings, as_json, explain, run
from stages.explain.occlusion import beat_bounds, parts_of, without

RATE_HZ, N_SAMPLES = 500, 5000
PLANTED = ("V2", "V3", "V4")
N_TRAIN = 60


def hearts(n, seed, elevation_mv=None, ectopic_s=None):
    """Draw ECGs with P, QRS and T; `elevation_mv` [n] raises ST in V2-V4, `ectopic_s` [n] adds a broad beat."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(N_SAMPLES) / RATE_HZ
    gains = np.array([0.8, 1.0, 0.4, -0.9, 0.3, 0.7, -0.6, 0.7, 0.9, 1.1, 1.0, 0.8])
    found = np.zeros((n, 12, N_SAMPLES), dtype=np.float32)
    for k in range(n):
        rr = rng.uniform(0.75, 1.0)
        for beat in np.arange(0.4, 10.0, rr):
            wave = 0.12 * np.exp(-(((time_s - beat + 0.16) / 0.025) ** 2))
            wave += np.exp(-(((time_s - beat) / 0.015) ** 2)) + 0.25 * np.exp(-(((time_s - beat - 0.28) / 0.045) ** 2))
            found[k] += gains[:, None] * wave
            if elevation_mv is not None:
                after = time_s - beat
                st = 0.5 * (np.tanh((after - 0.06) / 0.012) - np.tanh((after - 0.2) / 0.024))
                found[k, [LEADS.index(lead) for lead in PLANTED]] += elevation_mv[k] * st
        if ectopic_s is not None and ectopic_s[k]:
            found[k] += 1.5 * np.exp(-(((time_s - ectopic_s[k]) / 0.06) ** 2))
        found[k] += rng.normal(0, 0.015, (12, N_SAMPLES))
    return found


def answering(expert, positive, negative):
    """Fit a linear head on one frozen expert's vectors; its log odds are the answer."""

    def vectors(ecgs):
        return embed_records(expert, [Signal(ecg, float(RATE_HZ)) for ecg in ecgs]).embedding

    x = vectors([*positive, *negative])
    y = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    head = make_pipeline(
        SimpleImputer(keep_empty_features=True), StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)
    ).fit(x, y)
    return lambda ecgs: {"gate": head.decision_function(vectors(ecgs))}


def expert_of(name, tiny_ecgfm):
    if name == "ecgfm":
        return load_expert("ecgfm", config=tiny_ecgfm.config, weights=tiny_ecgfm.weights)
    return load_expert(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rocket", "morphology", "seed", "ecgfm"])
def test_a_planted_st_elevation_is_found_in_its_leads(name, tiny_ecgfm):
    rng = np.random.default_rng(1)
    raised = hearts(N_TRAIN, 2, elevation_mv=rng.uniform(0.25, 0.5, N_TRAIN))
    answer = answering(expert_of(name, tiny_ecgfm), raised, hearts(N_TRAIN, 3))
    ecg = hearts(1, 4, elevation_mv=[0.4])[0]
    found = explain(ExplainSettings(ecg, RATE_HZ, answer)).sources["gate"]
    assert found.answer > 0
    ranked = sorted(found.leads, key=found.leads.get, reverse=True)
    assert ranked[0] in PLANTED, found.leads
    st = found.parts_by_lead["ST"]
    assert set(sorted(st, key=st.get)[-3:]) == set(PLANTED), st
    # Without QRS a record has no beats to measure, so that what is said of it is no answer about QRS.
    parts = {part: effect for part, effect in found.parts.items() if part != "QRS"}
    assert max(parts, key=parts.get) == "ST", found.parts


@pytest.mark.slow
def test_a_planted_beat_is_found_in_its_second(tiny_ecgfm):
    rng = np.random.default_rng(1)
    extra = hearts(N_TRAIN, 2, ectopic_s=rng.uniform(1, 9, N_TRAIN))
    answer = answering(load_expert("rocket"), extra, hearts(N_TRAIN, 3))
    ecg = hearts(1, 4, ectopic_s=[6.5])[0]
    found = explain(ExplainSettings(ecg, RATE_HZ, answer)).sources["gate"]
    assert int(np.argmax(found.seconds)) == 6


def test_random_heads_show_no_structure():
    """Over 200 random heads on rocket's vectors no lead, second or beat part speaks for or against on the whole."""
    expert, rng = load_expert("rocket"), np.random.default_rng(0)
    scaled = None

    def answer(ecgs):
        nonlocal scaled
        vectors = embed_records(expert, [Signal(ecg, float(RATE_HZ)) for ecg in ecgs]).embedding.astype(np.float64)
        scaled = rng.normal(size=(vectors.shape[1], 200)) if scaled is None else scaled
        return {f"head {k}": values for k, values in enumerate((vectors @ scaled).T)}

    sources = explain(ExplainSettings(hearts(1, 4, elevation_mv=[0.4])[0], RATE_HZ, answer)).sources.values()
    for effects in (
        np.array([list(found.leads.values()) for found in sources]),
        np.array([found.seconds for found in sources]),
        np.array([list(found.parts.values()) for found in sources]),
    ):
        z = effects.mean(axis=0) / (effects.std(axis=0) / np.sqrt(len(effects)))
        assert np.abs(z).max() < 3.5


def mean_of_v2(ecgs):
    return {
        "gate": np.array([float(np.nansum(ecg[LEADS.index("V2")])) for ecg in ecgs]),
        "expert:none": np.full(len(ecgs), np.nan),
    }


def test_effects_are_the_whole_minus_the_rest_and_seconds_of_a_sum_add_up():
    ecg = hearts(1, 5)[0]
    found = explain(ExplainSettings(ecg, RATE_HZ, mean_of_v2)).sources["gate"]
    gone = without(ecg, RATE_HZ, parts_of(ecg, RATE_HZ, {})[LEADS.index("V2")])
    assert found.leads["V2"] == pytest.approx(found.answer - mean_of_v2([gone])["gate"][0], rel=1e-6)
    assert found.leads["V3"] == 0
    assert sum(found.seconds) == pytest.approx(found.leads["V2"], rel=1e-3)


def test_beat_parts_lie_where_they_were_drawn():
    bounds = beat_bounds(hearts(1, 6)[0], RATE_HZ)
    first = {name: spans[1] for name, spans in bounds.items()}
    assert list(first) == ["P", "QRS", "ST", "T"]
    middle = np.mean(first["QRS"])
    assert np.mean(first["P"]) - middle == pytest.approx(-0.16, abs=0.03)
    assert np.mean(first["T"]) - middle == pytest.approx(0.28, abs=0.05)


def test_missing_leads_stay_missing_and_are_not_asked():
    ecg = hearts(1, 7)[0]
    ecg[4] = np.nan
    parts = parts_of(ecg, RATE_HZ, {})
    assert "aVL" not in [part.name for part in parts]
    assert np.isnan(without(ecg, RATE_HZ, parts[-1])[4]).all()


def test_the_picture_and_the_json_are_written(tmp_path):
    ecg, calls = hearts(1, 8)[0], []
    settings = ExplainSettings(ecg, RATE_HZ, mean_of_v2, record="r1", task="sum", scale="mV")
    found = run(settings, ExplainPaths(tmp_path / "why.svg", tmp_path / "why.json"), lambda *done: calls.append(done))
    drawn = (tmp_path / "why.svg").read_text()
    assert 'id="shade-V2"' in drawn
    assert 'id="shade-V3"' not in drawn
    read = json.loads((tmp_path / "why.json").read_text())
    assert read == json.loads(as_json(found))
    assert read["passes"] == found.n_passes == 1 + 12 + 10 + 4 + 48
    assert read["sources"]["expert:none"]["answer"] is None
    assert calls[-1] == (found.n_passes - 1, found.n_passes - 1)


def test_where_nobody_answers_one_line_says_so():
    nobody = ExplainSettings(hearts(1, 9)[0], RATE_HZ, lambda ecgs: {"gate": np.full(len(ecgs), np.nan)}, record="r1")
    with pytest.raises(InputError, match="r1: no expert has an answer"):
        explain(nobody)


@pytest.mark.slow
def test_the_command_explains_a_record_of_the_study(tmp_path, make_cohort, ensemble, monkeypatch):
    make_cohort(tmp_path, 60)
    params = {"cohort": {"source": "wfdb", "path": "."}, "experts": {"seed": {}}, "fit_heads": {"folds": "split"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    for command in (["embed", "--expert", "seed"], ["fit-heads"]):
        assert ensemble(*command).returncode == 0
    done = ensemble("explain", "r0002", "--task", "sex", "--class", "male", "--out", "why.svg", "--json")
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert (read["record"], read["class"], read["scale"]) == ("r0002", "male", "log odds")
    assert list(read["sources"]) == ["gate", "expert:seed"]
    assert len(read["sources"]["gate"]["leads"]) == 12
    assert "r0002" in (tmp_path / "why.svg").read_text()
    female = json.loads(ensemble("explain", "r0002", "--task", "sex", "--json").stdout)
    assert female["sources"]["gate"]["answer"] == pytest.approx(-read["sources"]["gate"]["answer"])
    table = ensemble("explain", "r0002", "--task", "age")
    assert "effects in years" in table.stdout
    assert "its classes: male, female" in ensemble("explain", "r0002", "--task", "sex", "--class", "x").stderr
    assert ensemble("explain", "r0002", "--task", "weight").returncode == 2
