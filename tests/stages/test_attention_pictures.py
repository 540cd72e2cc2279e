"""The fit's attention over the ten seconds: shares by task and class from evaluate, and the report's picture."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cache.records import Target
from stages.evaluate import EvaluateSummary
from stages.evaluate.attention import mean_attention
from stages.heads import EnsembleHeads
from stages.report.attention_figures import attention_pictures

N, SECOND = 1000, 6


@pytest.fixture(scope="module")
def fitted():
    """Tokens that tell the sex in one second only; the first eight seconds of the last record are missing."""
    rng = np.random.default_rng(0)
    sex = rng.integers(0, 2, N).astype(float)
    segments = rng.normal(size=(N, 10, 8)).astype(np.float32)
    segments[:, SECOND, 0] += 3 * (sex - 0.5)
    segments[:, SECOND, 1] += 4
    segments[-1, :8] = np.nan
    features = {"mine": {"embedding": np.nanmean(segments, 1), "segments": segments}}
    order = np.arange(N)
    splits = [(order[:700], order[700:850], order[850:])]
    heads = EnsembleHeads(layer_mix="attention", lora=False, gate_epochs=1, seed=0)
    heads.fit(features, {"sex": sex}, splits=splits, groups=np.array([f"p{k}" for k in order]))
    target = Target("sex", "binary", classes=("male", "female"))
    data = SimpleNamespace(features=features, targets={"sex": sex}, tasks=(target,), records=pd.DataFrame())
    return heads, data, splits


def test_shares_are_means_over_test_records_and_point_at_the_second_that_tells(fitted):
    heads, data, splits = fitted
    found = mean_attention(heads, data, splits)["mine"]["sex"]
    pool = heads.mixers_["mine"][0].attention
    from stages.heads.inputs.expert_features import ExpertFeatures

    rows, sex = splits[0][2], data.targets["sex"]
    weights = pool.weights(ExpertFeatures(None, views={"segments": data.features["mine"]["segments"][rows]}))[0]
    assert found["n"] == len(rows)
    np.testing.assert_allclose(found["seconds"], weights.mean(0), atol=2e-6)
    assert sum(found["seconds"]) == pytest.approx(1, abs=1e-4)
    assert np.argmax(found["seconds"]) == SECOND
    for k, name in enumerate(("male", "female")):
        mask = sex[rows] == k
        assert found["classes"][name]["n"] == mask.sum()
        np.testing.assert_allclose(found["classes"][name]["seconds"], weights[mask].mean(0), atol=2e-6)


def test_a_fit_without_attention_has_none_and_its_evaluation_is_as_before(fitted):
    heads, data, splits = fitted
    plain = EnsembleHeads(layer_mix="embedding", lora=False, gate_epochs=1, seed=0)
    embeddings = {"mine": {"embedding": data.features["mine"]["embedding"]}}
    plain.fit(embeddings, data.targets, splits=splits, groups=np.array([f"p{k}" for k in range(N)]))
    assert mean_attention(plain, data, splits) == {}
    summary = EvaluateSummary(False, ())
    assert "attention" not in summary.evaluation({})
    summary.attention = mean_attention(heads, data, splits)
    assert summary.evaluation({})["attention"] == summary.attention


def test_the_picture_has_a_bar_a_second_and_a_line_a_class(fitted):
    heads, data, splits = fitted
    pictures = attention_pictures("sex", mean_attention(heads, data, splits))
    assert [picture["caption"] for picture in pictures] == ["mine, 150 test records"]
    assert pictures[0]["figure"].count("<rect") == 10
    assert len(pictures[0]["legend"]) == pictures[0]["figure"].count('class="curve s') == 2
    assert "mean attention, %" in pictures[0]["figure"]
    assert pictures[0]["figure"].count("c0 pale") == 10  # lines of classes are seen in front of the bars
    assert attention_pictures("age", mean_attention(heads, data, splits)) == []
