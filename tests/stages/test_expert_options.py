"""Architecture options: a misspelt one is refused with the nearest name, official ones of training are passed over."""

import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open

from cache.errors import UsageError
from stages.experts import expert_class, load_expert
from stages.experts.options import architecture_overrides
from tests.stages.small_experts import NAMES

MISSPELT = [
    ("stmem", {"head": 4}, "heads"),
    ("seed", {"wdith": 32}, "widths"),
    ("timesnet", {"d_modle": 8}, "d_model"),
    ("dlinear", {"seqlen": 500}, "seq_len"),
    ("moment", {"t5_config": {"d_modle": 32}}, "d_model"),
    ("tempo", {"gpt2": {"n_heads": 4}}, "n_head"),
    ("ecgfm", {"encoder_layer": 2}, "encoder_layers"),
    ("ecgfounder", {"base_filter": 16}, "base_filters"),
    ("hubert", {"hiden_size": 64}, "hidden_size"),
    ("jepa", {"dept": 2}, "depth"),
    ("ttm", {"patch_lenght": 32}, "patch_length"),
    ("rocket", {"sed": 1}, "seed"),
]


@pytest.mark.parametrize(("name", "config", "nearest"), MISSPELT)
def test_a_misspelt_option_is_refused_with_the_nearest_name(name, config, nearest):
    with pytest.raises(UsageError, match=f"expert '{name}': unknown config option .* did you mean '{nearest}'"):
        load_expert(name, config=config, random_weights=True)


@pytest.mark.parametrize("name", NAMES)
def test_each_option_of_the_small_configuration_is_refused_when_misspelt(name):
    cls, variant = expert_class(name)
    for option in cls.small_config(variant) or {}:
        with pytest.raises(UsageError, match="unknown config option"):
            load_expert(name, config={f"{option}_": 1}, random_weights=True)


def official_configurations():
    folder = Path(os.environ.get("ENSEMBLE_PARITY", "nowhere"))
    for path in sorted(folder.glob("*-a.safetensors")):
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "{}"))
        name = path.name.removesuffix("-a.safetensors")
        if name in (
            "clef",
            "dbeta",
            "dlinear",
            "ecgcpc",
            "ecgfm",
            "ecgfounder",
            "hubert",
            "jepa",
            "mantis",
            "melp",
            "merl-vit",
            "moment",
            "stmem",
            "timesnet",
            "ttm",
            "xecg",
        ):
            yield pytest.param(name, config, id=name)


@pytest.mark.parametrize(("name", "config"), list(official_configurations()))
def test_the_officials_own_configuration_is_taken_whole(name, config):
    assert load_expert(name, config=config, random_weights=True).spec.parameters


def test_options_that_change_nothing_are_passed_over():
    assert architecture_overrides("mine", {"heads": 2, "dropout": 0.1, "_name": "x"}, ["heads"], ["dropout"]) == {
        "heads": 2
    }
