"""Chronos-2 against the package's own pipeline on random weights: vectors, gaps, missing leads, other sizes."""

import builtins

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cache.errors import InputError, UsageError, WeightsError
from stages.experts import load_expert
from stages.experts.models.time_series.chronos2 import Chronos2Expert

chronos = pytest.importorskip("chronos", reason="chronos-forecasting is not installed")
SMALL = Chronos2Expert.small_config()


def new(**config):
    torch.manual_seed(0)
    expert = load_expert("chronos2", config={**SMALL, **config}, random_weights=True)
    for parameter in expert.module.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return expert


@pytest.mark.parametrize("config", [{}, {"num_layers": 3, "chronos_config": {"input_patch_size": 8}}])
def test_vectors_are_those_of_the_published_pipeline(config):
    if config:
        config["chronos_config"] |= {"input_patch_stride": 8, "output_patch_size": 8}
    expert, x = new(**config), torch.randn(3, 12, 1024)
    x[2, :, :160] = torch.nan
    theirs, _ = chronos.Chronos2Pipeline(expert.module).embed([record.numpy() for record in x])
    with torch.inference_mode():
        ours = expert.encode(x)
    patch = expert.forecasting["input_patch_size"]
    for record, first in ((0, 0), (1, 0), (2, 160 // patch)):
        tokens = theirs[record][:, first : 1024 // patch]
        torch.testing.assert_close(ours.embedding[record], tokens.mean((0, 1)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.tokens[record, first:], tokens.mean(0), atol=1e-5, rtol=1e-5)
    before_norm = ours.layers[:, -1]
    assert not torch.allclose(before_norm, ours.embedding)


def test_a_missing_lead_is_left_out_and_a_record_alone_has_one_vector():
    expert, x = new(), torch.randn(2, 12, 1024)
    x[1, 4] = torch.nan
    with torch.inference_mode():
        together, alone = expert.encode(x), expert.encode(x[1:])
        eleven = expert.encode(x[1:, [lead for lead in range(12) if lead != 4]])
    torch.testing.assert_close(together.embedding[1], alone.embedding[0], atol=1e-5, rtol=1e-5)
    assert together.embedding.isfinite().all()
    # The network sees the masked lead's time codes, so the vector is near that of eleven leads, and not equal.
    assert torch.nn.functional.cosine_similarity(alone.embedding, eleven.embedding) > 0.98


def test_weights_load_strictly_under_the_official_keys(tmp_path):
    expert = new()
    state = {key: value.clone() for key, value in expert.module.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_expert("chronos2", tmp_path / "weights.safetensors", SMALL)
    x = torch.randn(1, 12, 1024)
    with torch.inference_mode():
        assert torch.equal(loaded.encode(x).embedding, expert.encode(x).embedding)
    del state["shared.weight"]
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"missing 1: shared\.weight"):
        load_expert("chronos2", tmp_path / "weights.safetensors", SMALL)


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    whole = builtins.__import__

    def without(name, *rest):
        if name.startswith("chronos"):
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(WeightsError, match=r"pip install 'ecg-ensemble\[chronos\]'$"):
        load_expert("chronos2", config=SMALL, random_weights=True)


def test_records_of_other_lengths_and_rates():
    expert = new()
    assert expert.spec.sampling_rate_hz == 102.4
    assert expert.prepare(np.zeros((1, 12, 12_500)), 500).shape == (1, 3, 12, 1024)
    assert expert.prepare(np.zeros((1, 12, 1250)), 500).shape == (1, 1, 12, 256)
    gaps = np.zeros((1, 12, 5000))
    gaps[0, 3] = np.nan
    assert expert.prepare(gaps, 500)[0, 0, 3].isnan().all()
    with pytest.raises(InputError, match=r"shorter than 0\.15625 s"):
        expert.prepare(np.zeros((1, 12, 60)), 500)
    with pytest.raises(InputError, match=r"expected \[batch, lead, 16 to 8192\]"):
        expert.encode(torch.zeros(1, 12, 8))


def test_wrong_options_are_named():
    for config, says in (
        ({"feed_forward_proj": "gated-gelu"}, "only relu is published"),
        ({"chronos_config": {"input_patch_size": 8}}, "give the same for both"),
        ({"d_models": 32}, "did you mean 'd_model'"),
    ):
        with pytest.raises(UsageError, match=says):
            load_expert("chronos2", config=config, random_weights=True)
