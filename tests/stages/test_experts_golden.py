"""Every expert against its committed golden vectors, so that a clone without the official fixtures notices a change."""

import json

import numpy as np
import pytest

from stages.experts import expert_class
from tests.stages.golden_vectors import FOLDER, vectors_of
from tests.stages.small_experts import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_the_golden_ones(name):
    path = FOLDER / f"{name}.json"
    if expert_class(name)[0].__module__.partition(".")[0] != "stages":
        pytest.skip(f"{name} is another package's expert; its golden vectors are its own affair")
    assert path.is_file(), f"write them: python -m tests.stages.golden_vectors {name}"
    golden, now = json.loads(path.read_text()), vectors_of(name)
    assert golden.keys() == now.keys()
    for variant, content in now.items():
        assert golden[variant].keys() == content.keys()
        for key, values in content.items():
            expected, found = (np.array(v, dtype=float) for v in (golden[variant][key], values))
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=f"{variant}/{key}")


def test_no_golden_file_is_left_behind():
    assert {path.stem for path in FOLDER.glob("*.json")} <= set(NAMES)
