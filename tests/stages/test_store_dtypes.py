"""Vectors are stored in float16 where that costs less than half a percent of the spread between records."""

import pytest
import torch

from benchmarks.embed import rounding
from stages.experts import expert_class, load_expert
from stages.experts.run import RunSettings, Signal, embed_records
from stages.readers.files import find_ecgs, read_ecg
from tests.stages.small_experts import NAMES

MOST = 0.005
LARGEST_PARAMETERS = 12_000_000
"""Of one size an expert: larger ones take minutes and are measured by benchmarks/embed.py (docs/decisions.md)."""


def _is_small(name):
    cls, variant = expert_class(name)
    return "-" not in name and cls.published_spec(variant).published_parameters < LARGEST_PARAMETERS


@pytest.fixture(scope="module")
def signals(test_data):
    recorded = [read_ecg(path) for path in find_ecgs([test_data / "ptbxl" / "records500"])[:24]]
    return [Signal(one.signals_mv, one.rate_hz) for one in recorded]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if _is_small(name)])
def test_float16_costs_less_than_half_a_percent_where_it_is_chosen(name, signals):
    torch.manual_seed(0)
    expert = load_expert(name, random_weights=True)
    found = embed_records(expert, signals, RunSettings(dtype="float32"))
    assert not found.reasons
    arrays = [found.embedding, *found.layers.swapaxes(0, 1), *([] if found.output is None else [found.output])]
    cost = max(map(rounding, arrays))
    assert expert.spec.store_dtype == "float32" or cost < MOST, cost
    if name == "openecg":
        assert cost > MOST, "float16 would do"
