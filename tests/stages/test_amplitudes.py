"""Which experts need millivolts: those that say they do not give the same vectors for leads in units of their own."""

import numpy as np
import pytest

from stages.experts.run import run_expert
from tests.stages.small_experts import NAMES, PATHS, RATE_HZ, published, records, small_case

SAME = 2e-4
"""Of the vectors' spread: what a network that divides by a deviation plus a small number makes of another unit."""
SCALE_FREE = [(name, path) for name, path in PATHS if path in published(name).scale_free]


def moved_apart(name, path, gap=slice(0, 0)):
    """Return how far vectors of three records, some samples of which are missing, move when each lead gets a unit and
    an offset of its own."""
    expert, signals = small_case(name, path).expert, records(3).copy()
    signals[:, :, gap] = np.nan
    vectors = run_expert(expert, expert.prepare(signals, RATE_HZ))
    rng = np.random.default_rng(5)
    factors, offsets = rng.uniform(0.4, 2.5, (1, 12, 1)), rng.uniform(-0.4, 0.4, (1, 12, 1))
    other = run_expert(expert, expert.prepare(signals * factors + offsets, RATE_HZ))
    furthest = 0.0
    for what, values in vectors.arrays().items():
        known = np.isfinite(values)
        apart = np.abs(values - other.arrays()[what])[known].max()
        furthest = max(furthest, float(apart / values[known].std()))
    return furthest


@pytest.mark.parametrize(("name", "path"), SCALE_FREE)
def test_experts_that_scale_every_lead_anew_take_any_unit(name, path):
    assert moved_apart(name, path) < SAME


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path"), [one for one in PATHS if one not in SCALE_FREE])
def test_no_other_expert_could_take_any_unit(name, path):
    """Else it would be refused without need. A path that takes gaps for 0 mV shows it by one."""
    assert moved_apart(name, path, gap=slice(2000, 2200)) > SAME


def test_some_are_of_each_kind():
    assert {name for name, _ in SCALE_FREE} > {"ecgfm", "hubert", "clef", "chronos2", "moment", "ecgfounder-1lead"}
    assert {"seed", "morphology", "rocket", "ecgfounder", "merl", "xecg"} <= set(NAMES) - {
        name for name, _ in SCALE_FREE
    }
