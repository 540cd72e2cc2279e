"""What every registered expert keeps to. A new one is covered by existing; its small network is its `small_config`."""

import numpy as np
import pytest
import torch

from cache.errors import InputError
from stages.experts import expert_class, load_expert
from stages.experts.contract import STANDARD_LEADS
from stages.experts.run import run_expert, set_precision
from stages.experts.token_times import window_starts_s
from tests.stages.small_experts import NAMES, PATHS, RATE_HZ, new_expert, prepared, records, small_expert

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=(NO_CUDA, pytest.mark.gpu))]


def equal(one, other, atol=0.0):
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), atol=atol, rtol=0, equal_nan=True)


def distance(one, other):
    """1 - |correlation| along the last axis."""
    one, other = (v - v.mean(-1, keepdim=True) for v in (one.double(), other.double()))
    scale = (one.square().sum(-1) * other.square().sum(-1)).sqrt().clamp(min=1e-12)
    return 1 - ((one * other).sum(-1) / scale).abs()


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_what_comes_out_is_what_the_spec_says(name, path):
    expert, x = small_expert(name, path), prepared(name, path)
    spec = expert.spec
    assert x.dtype == torch.float32
    assert x.device.type == "cpu"
    with torch.inference_mode():
        encoding = expert.encode(x[:, 0])
    assert [layer.shape for layer in _layers(encoding)] == [(3, dim) for dim in spec.layer_dims]
    assert len(spec.layer_dims) == len(spec.layer_names) == len(set(spec.layer_names))
    assert encoding.embedding.shape == (3, spec.embedding_dim)
    assert encoding.embedding.dtype == torch.float32
    assert (None if encoding.output is None else encoding.output.shape) == (spec.output_dim and (3, spec.output_dim))
    assert spec.name in (name, f"{name}-{expert.variants[0] if expert.variants else ''}")
    assert spec.parameters == (sum(p.numel() for p in expert.module.parameters()) if expert.module else 0)
    assert set(spec.leads) <= set(STANDARD_LEADS)
    assert not spec.needs_weights or expert.module is not None


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_tokens_lie_in_time_as_the_spec_says(name, path):
    expert, x = small_expert(name, path), prepared(name, path)
    spec, times = expert.spec, expert.spec.tokens
    with torch.inference_mode():
        tokens = expert.encode(x[:, 0]).tokens
    if times is None:
        assert tokens is None
        assert spec.views == ()
        return
    assert tokens.shape == (3, times.per_window, times.dim)
    assert tokens.isfinite().all()
    starts, ends = times.spans_s(times.per_window)
    assert starts.min() >= 0
    assert ends.max() <= spec.seconds + times.step_s
    covered = np.unique(np.floor((starts + ends) / 2 - 1e-9))
    assert set(range(int(spec.seconds))) <= set(covered)
    assert covered.max() < spec.seconds
    assert window_starts_s(spec.placement, x.shape[1], spec.seconds, 10.0)[-1] + spec.seconds <= 10.0 + 1e-6


def middle_s(tokens, reference, times):
    """Where tokens differ from others, [record] in seconds: the middle, weighed by how much."""
    starts, ends = times.spans_s(tokens.shape[1])
    change = (tokens - reference).double().square().sum(-1).numpy()
    return (change * (starts + ends) / 2).sum(1) / change.sum(1)


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_a_later_change_in_the_window_shows_in_later_tokens(name, path):
    """A network that looks at everything at once still changes most where its input does."""
    expert, x = small_expert(name, path), prepared(name, path)[:1, 0]
    times = expert.spec.tokens
    if times is None or times.turn_s or name == "timesnet":  # which begins with a map over time, here a drawn one
        pytest.skip("no tokens whose input lies where they do")
    time = -1 if x.ndim < 3 or x.shape[-1] > x.shape[-2] else -2
    n = x.shape[time]
    early, late = x.clone(), x.clone()
    for changed, start in ((early, n // 8), (late, n - n // 4)):
        part = changed.narrow(time, start, n // 8)
        part.copy_(part.flip(time))
    with torch.inference_mode():
        base, first, last = (expert.encode(each).tokens for each in (x, early, late))
    assert middle_s(first, base, times)[0] < middle_s(last, base, times)[0] - expert.spec.seconds / 8


def _layers(encoding):
    layers = encoding.layers
    return list(layers.unbind(1)) if isinstance(layers, torch.Tensor) else layers


@pytest.mark.parametrize("name", NAMES)
def test_the_published_configuration_has_the_published_parameters(name):
    cls, variant = expert_class(name)
    published = cls.published_spec(variant)
    assert published.licence
    assert published.source
    if not published.needs_weights:
        assert published.parameters == published.published_parameters == 0
        return
    with torch.device("meta"):
        spec = cls.build(None, None, variant=variant).spec
    assert spec.parameters == published.published_parameters
    assert spec == published


@pytest.mark.parametrize("name", NAMES)
def test_two_passes_are_bit_equal_and_change_no_input(name):
    expert, signals = small_expert(name), records(3)
    x = expert.prepare(signals, RATE_HZ)
    equal(x, prepared(name))
    assert np.array_equal(signals, records(3))
    before = x.clone()
    first, second = run_expert(expert, x), run_expert(expert, x)
    equal(x, before)
    equal(first.layers, second.layers)
    equal(first.embedding, second.embedding)


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_a_record_alone_and_in_a_batch_has_one_vector(name, path):
    expert = small_expert(name, path)
    whole = run_expert(expert, prepared(name, path))
    for i, record in enumerate(records(3)[:, None]):
        alone = run_expert(expert, expert.prepare(record, RATE_HZ))
        equal(alone.layers[0], whole.layers[i])
        equal(alone.embedding[0], whole.embedding[i])
        if whole.output is not None:
            equal(alone.output[0], whole.output[i])


@pytest.mark.parametrize("name", NAMES)
def test_records_differ_in_their_vectors(name):
    vectors = run_expert(small_expert(name), prepared(name))
    for values in (vectors.embedding, vectors.layers[:, -1]):
        assert not np.allclose(values[0], values[1], atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_leads_are_taken_by_name(name, path):
    expert, base = small_expert(name, path), prepared(name, path)[:1]
    leads, other = expert.spec.leads, records(3)[2]
    changed = np.repeat(records(1), len(leads), axis=0)
    for row, lead in zip(changed, leads, strict=True):
        row[STANDARD_LEADS.index(lead)] = other[(STANDARD_LEADS.index(lead) + 1) % 12][::-1]
    for position, x in enumerate(expert.prepare(changed, RATE_HZ).split(1)):
        assert not torch.equal(x.nan_to_num(), base.nan_to_num()), f"lead {leads[position]} changes nothing"
        if x.ndim == 4 and x.shape[2] == len(leads):
            assert distance(x, base).amax((0, 1)).argmax() == position, f"{leads[position]} is not channel {position}"


@pytest.mark.parametrize("name", NAMES)
def test_swapped_electrodes_change_the_input(name):
    expert = small_expert(name)
    swapped = records(3)
    used = [STANDARD_LEADS.index(lead) for lead in expert.spec.leads]
    swapped[:, [used[0], used[-1]]] = swapped[:, [used[-1], (used[0] + 1) % 12 if len(used) == 1 else used[0]]]
    assert not torch.equal(expert.prepare(swapped, RATE_HZ).nan_to_num(), prepared(name).nan_to_num())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [np.float32, torch.float64])
def test_arrays_and_tensors_of_both_widths_are_prepared_alike(name, kind):
    as_tensor = isinstance(kind, torch.dtype)
    signals = torch.as_tensor(records(3), dtype=kind) if as_tensor else records(3).astype(kind)
    x = small_expert(name).prepare(signals, RATE_HZ)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, prepared(name), atol=0 if as_tensor else 1e-2, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rate_hz", [250.0, 1000.0])
def test_other_sampling_rates_give_the_same_shape(name, rate_hz):
    x = small_expert(name).prepare(records(1, rate_hz=rate_hz), rate_hz)
    assert x.shape == prepared(name)[:1].shape
    assert x.isfinite().all() or small_expert(name).spec.nan_features


@pytest.mark.parametrize("name", NAMES)
def test_weights_load_from_a_data_parallel_checkpoint_under_the_same_keys(name, tmp_path):
    expert, cls = small_expert(name), expert_class(name)[0]
    if not expert.spec.needs_weights:
        pytest.skip("no weights")
    state = expert.module.state_dict()
    content = {"epoch": torch.tensor(3), "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(content, tmp_path / "weights.pth")
    loaded = load_expert(name, tmp_path / "weights.pth", cls.small_config(expert_class(name)[1]))
    assert loaded.module.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())
    assert loaded.spec == expert.spec


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_stay_close_to_float32(name, device, precision):
    expert = new_expert(name)
    expert.device = torch.device(device)
    if expert.module is not None:
        expert.module.to(device)
    reference = run_expert(small_expert(name), prepared(name)).embedding
    set_precision(expert, precision)
    embedding = run_expert(expert, prepared(name)).embedding
    assert embedding.dtype == np.float32
    one, other = (torch.from_numpy(v).nan_to_num() for v in (embedding, reference))
    assert torch.cosine_similarity(one, other).min() > 0.98


AWKWARD = ("missing leads", "missing samples", "flat leads", "flat record", "no sample", "pace spikes")


def awkward_records():
    """One record of each kind of `AWKWARD`, and an ordinary one at the end."""
    signals = np.roll(records(1 + len(AWKWARD)), -1, axis=0)
    signals[0, [0, 1, 6]] = np.nan
    signals[1, :, :200] = np.nan
    signals[1, 3:8, 900:1400] = np.nan
    signals[1, 1, -1] = np.nan
    signals[2, [1, 4, 9]] = np.array([0.1, 0.0, -0.235])[:, None]
    signals[3] = 0.1
    signals[4] = np.nan
    signals[5, :, ::400] = 20.0
    return signals


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_awkward_records_get_a_finite_vector_and_leave_their_neighbours_alone(name, path):
    expert, signals = small_expert(name, path), awkward_records()
    vectors = run_expert(expert, expert.prepare(signals, RATE_HZ))
    failed = vectors.failed(expert.spec.nan_features)
    assert [kind for kind, without in zip((*AWKWARD, "ordinary"), failed, strict=True) if without] == []
    alone = run_expert(expert, expert.prepare(signals[-1:], RATE_HZ))
    equal(vectors.embedding[-1], alone.embedding[0], atol=1e-5)
    assert expert.spec.missing_leads


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seconds", [1.0, 6.0, 9.99, 15.0])
def test_short_and_long_records_give_a_vector_or_a_clear_refusal(name, seconds):
    expert = small_expert(name)
    try:
        x = expert.prepare(records(1, seconds), RATE_HZ)
    except InputError as error:
        assert seconds < 10
        message = str(error)
        assert expert.spec.name.partition("-")[0] in message
        assert f"{seconds:g} s" in message
        assert "\n" not in message
    else:
        vectors = run_expert(expert, x)
        assert vectors.embedding.shape == (1, expert.spec.embedding_dim)
        assert not vectors.failed(expert.spec.nan_features).any()
    assert expert.spec.windows


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_leads_is_refused(name):
    with pytest.raises(InputError, match="12"):
        small_expert(name).prepare(records(1)[:, :8], RATE_HZ)
