"""The published checkpoints themselves: those that are on this machine load and run, those of the hub are the pinned.

The first needs them in the hub's cache (`ensemble weights fetch NAME`), the second ENSEMBLE_NETWORK=1 and the internet.
"""

import os

import numpy as np
import pytest

from stages.experts import expert_class, hub, list_experts, load_expert
from stages.experts.run import run_expert


def specs():
    found = {}
    for name in list_experts():
        cls, variant = expert_class(name)
        spec = cls.published_spec(variant)
        if spec.needs_weights and spec.weights is not None and spec.weights.repo_id:
            found[name] = spec
    return found


PUBLISHED = specs()


@pytest.mark.weights
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_checkpoint_on_this_machine_loads_and_tells_records_apart(name):
    if hub.cached(PUBLISHED[name]) is None:
        pytest.skip(f"the weights of {name} are not on this machine; `ensemble weights fetch {name}`")
    expert = load_expert(name)
    signals_mv = np.random.default_rng(0).normal(0, 0.3, (3, 12, 5000))
    vectors = run_expert(expert, expert.prepare(signals_mv, 500.0)).embedding
    assert vectors.shape == (3, expert.spec.embedding_dim)
    assert np.isfinite(vectors).all()
    assert vectors.std(axis=0).max() > 0


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("ENSEMBLE_NETWORK") != "1", reason="ENSEMBLE_NETWORK=1 lets tests use the internet")
@pytest.mark.parametrize("name", [name for name, spec in PUBLISHED.items() if hub.is_commit(spec.weights.revision)])
def test_the_hub_has_the_pinned_file(name):
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    source = PUBLISHED[name].weights
    found = get_hf_file_metadata(hf_hub_url(source.repo_id, source.filename, revision=source.revision))
    assert found.commit_hash == source.revision
    if source.sha256:
        assert found.etag == source.sha256  # the hub's tag of a large file is its sha256
