"""`variety`: a cohort of more different hearts, with the labels and people of the embedded one."""

import numpy as np
import pytest
from pydantic import ValidationError

from stages.synthetic import GeneratePaths, GenerateSettings
from stages.synthetic import run as generate
from stages.synthetic.cohort import draw_block, draw_chunks


def chunk(variety):
    block = draw_block(3, 0, variety=variety)
    return block, next(draw_chunks(block, 50))


@pytest.fixture(scope="module")
def drawn():
    return {variety: chunk(variety) for variety in (0.0, 1.0, 2.0)}


def test_people_rhythms_and_labels_stay(drawn):
    (plain, plain_chunk), (wide, wide_chunk) = drawn[0.0], drawn[1.0]
    assert np.array_equal(plain.schedule.report, wide.schedule.report)
    assert np.array_equal(plain.state.rate_bpm, wide.state.rate_bpm)
    assert np.array_equal(plain.state.potassium, wide.state.potassium)
    assert plain.labs == wide.labs
    assert np.array_equal(plain_chunk.beats.onset_s, wide_chunk.beats.onset_s)


def test_shapes_axes_and_noise_spread_with_variety(drawn):
    axes = [np.std(block.state.axis_rad) for block, _ in drawn.values()]
    noise = [np.std(np.log(block.cart.muscle_mv)) for block, _ in drawn.values()]
    assert axes == sorted(axes)
    assert noise == sorted(noise)
    assert axes[1] > 1.2 * axes[0]
    # Records of one rhythm resemble one another less, whatever their amplitude and their beats' places.
    likeness = [np.median(_likeness(part.clean_mv)) for _, part in drawn.values()]
    assert likeness[0] > likeness[1] > likeness[2]


def _likeness(clean_mv):
    """Correlation of the records' lead-by-lead covariances: what of a heart's directions they share."""
    lead_by_lead = np.stack([np.cov(record)[np.triu_indices(12)] for record in clean_mv])
    return np.corrcoef(lead_by_lead)[np.triu_indices(len(clean_mv), 1)]


def test_leads_still_add_up(drawn):
    _, wide = drawn[1.0]
    lead = wide.clean_mv
    np.testing.assert_allclose(lead[:, 0] + lead[:, 2], lead[:, 1], atol=1e-9)
    assert np.isfinite(lead).all()
    assert 1.0 < np.abs(lead).max() < 20.0


def test_the_same_seed_gives_the_same_records(drawn):
    again = chunk(1.0)[1]
    assert np.array_equal(again.counts, drawn[1.0][1].counts)


@pytest.mark.parametrize("variety", [-0.1, 2.5, float("nan")])
def test_a_variety_out_of_range_is_refused(tmp_path, variety):
    with pytest.raises(ValidationError, match="variety"):
        generate(GenerateSettings(records=1, variety=variety), GeneratePaths(tmp_path / "cohort"))
