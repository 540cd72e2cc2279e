"""What every registered expert keeps to. A new one is covered by existing; its small network is its `small_config`.

The checks are those of `ensemble experts check NAME` (`stages.experts.contract_checks`).
"""

import pytest
import torch

from stages.experts.contract_checks import (
    CHECKS,
    half_precision_stays_close,
    published_spec_is_true,
    unknown_options_are_refused,
    weights_load_under_their_keys,
)
from stages.experts.run import run_expert, set_precision
from tests.stages.small_experts import EACH_CODE_PATH, NAMES, new_expert, prepared, small_case, small_expert

ONCE = (
    published_spec_is_true,
    half_precision_stays_close,
    weights_load_under_their_keys,
    unknown_options_are_refused,
)
"""Checks that do not depend on the input path."""
EACH_PATH = [check for check in CHECKS if check not in ONCE]


@pytest.mark.parametrize(("name", "path"), EACH_CODE_PATH)
@pytest.mark.parametrize("check", EACH_PATH, ids=lambda check: check.__name__)
def test_every_input_path_keeps_the_contract(check, name, path):
    assert check(small_case(name, path)) == ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", ONCE, ids=lambda check: check.__name__)
def test_every_expert_keeps_the_contract(check, name):
    assert check(small_case(name)) == ""


def test_every_expert_here_says_how_long_a_record_must_be():
    assert not [name for name in NAMES if not 0 < small_expert(name).spec.shortest_s <= 10]


def middle_s(tokens, reference, times):
    """Where tokens differ from others, [record] in seconds: the middle, weighed by how much."""
    starts, ends = times.spans_s(tokens.shape[1])
    change = (tokens - reference).double().square().sum(-1).numpy()
    return (change * (starts + ends) / 2).sum(1) / change.sum(1)


@pytest.mark.parametrize(("name", "path"), EACH_CODE_PATH)
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_what_the_cpu_gives(name, precision):
    expert = new_expert(name)
    expert.device = torch.device("cuda")
    if expert.module is not None:
        expert.module.to("cuda")
    set_precision(expert, precision)
    embeddings = (run_expert(each, prepared(name)).embedding for each in (expert, small_expert(name)))
    one, other = (torch.from_numpy(values).nan_to_num() for values in embeddings)
    assert torch.cosine_similarity(one, other).min() > (0.9999 if precision == "fp32" else 0.98)
