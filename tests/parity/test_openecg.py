"""Expert openecg on its real weights: equal to the package's own classes, for every codec in the wheel."""

import importlib.util
import warnings

import numpy as np
import pytest
import scipy.signal
import torch

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.checkpoints import package_folder
from stages.experts.models.ecg.openecg import CODECS, OpenEcg

NAMES = {codec: "openecg" if codec == "v6" else f"openecg-{codec}" for codec in CODECS}
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("openecg") is None, reason="the package openecg is not installed"
)


def signals(seconds=10.0, rate_hz=500):
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    beats = scipy.signal.gausspulse((time[:, None] - np.arange(0.4, seconds, 0.8)) / 0.03, fc=1.0).sum(-1)
    chance = np.random.default_rng(0)
    return np.stack([gain * beats + 0.05 * chance.normal(size=(12, len(time))) for gain in (1.0, 0.4)])


@needs_package
@pytest.mark.parametrize("codec", CODECS)
def test_the_real_weights_give_what_the_package_gives(codec):
    import openecg

    expert = load_expert(NAMES[codec])
    path = package_folder(expert.spec.weights) / expert.spec.weights.filename
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the package's own encoder
        theirs = openecg.load_codec(str(path))
    windows = expert.prepare(signals(), 500)
    ranked = np.stack([openecg.rank_normalize(lead) for lead in signals()[:, 1]])
    np.testing.assert_allclose(windows[:, 0].numpy(), ranked, atol=1e-6)
    seen = []
    theirs.upper_transformer.register_forward_hook(lambda module, given, result: seen.append(result))
    with torch.inference_mode():
        frame, beat, rhythm = theirs(windows[:, 0], torch.ones(2, dtype=torch.long))
        encoding, states = expert.encode(windows[:, 0]), expert.module(windows[:, 0])
    for ours, expected in zip(states.logits, (frame, beat, rhythm), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoding.tokens, seen[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoding.embedding, seen[0].mean(1), atol=1e-5, rtol=0)
    shares = torch.cat([logits.softmax(-1).mean(1) for logits in (frame, beat, rhythm)], dim=-1)
    torch.testing.assert_close(encoding.output, shares, atol=1e-5, rtol=0)


@needs_package
def test_another_file_of_that_name_is_refused(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/codec_v6.pt").write_bytes(b"other")
    monkeypatch.setattr("stages.experts.checkpoints.package_folder", lambda source: tmp_path)
    with pytest.raises(WeightsError, match=r"has sha256 .*; install the package openecg again"):
        load_expert("openecg")


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr("stages.experts.checkpoints.package_folder", lambda source: None)
    with pytest.raises(WeightsError, match=r"pip install 'ecg-ensemble\[openecg\]'$"):
        load_expert("openecg")


def test_windows_lengths_and_missing_lead():
    expert = load_expert("openecg", config=OpenEcg.small_config(), random_weights=True)
    assert expert.prepare(signals(25.0), 500).shape == (2, 3, 5000)
    assert expert.prepare(signals(2.5), 500).shape == (2, 1, 1250)
    assert expert.prepare(signals(10.0, 257), 257).shape == (2, 1, 5000)
    without = signals()
    without[:, 1] = np.nan
    assert not expert.prepare(without, 500).any()
    with pytest.raises(InputError, match=r"0\.5 s are shorter than 1 s"):
        expert.prepare(signals(0.5), 500)


def test_wrong_inputs_and_options_are_named():
    expert = load_expert("openecg", config=OpenEcg.small_config(), random_weights=True)
    for shape in ((1, 5005), (1, 5130), (1, 1, 5000), (1, 0)):
        with pytest.raises(InputError, match=r"expected \[batch, time\]"):
            expert.encode(torch.zeros(shape))
    for config, says in (
        ({"n_heads": 3}, "no multiple of n_heads"),
        ({"mid_split": 8}, "leaves none of 8 n_layers"),
    ):
        with pytest.raises(UsageError, match=says):
            load_expert("openecg", config=config, random_weights=True)
