"""Every option of `EnsembleHeads` is checked before anything is read, and is explained in the docs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.base import clone

from cache.errors import UsageError
from stages.fit_heads import FitHeadsSettings
from stages.heads import EnsembleHeads
from stages.heads.options import EstimatorOptions, FitOptions, checked

WRONG: list[tuple[str, Any]] = [
    ("layer_mix", ["embedding"]),
    ("lora", "yes"),
    ("hierarchy", "yes"),
    ("rank", 0),
    ("rank", 2.5),
    ("rank", True),
    ("alpha", "x"),
    ("lora_epochs", -1),
    ("lora_learning_rate", 0),
    ("gate_input", 3),
    ("gate_epochs", None),
    ("gate_hidden", 0),
    ("gate_learning_rate", float("nan")),
    ("top_k", -2),
    ("expert_dropout", 7),
    ("expert_dropout", 1),
    ("entropy", "high"),
    ("load_balance", -0.1),
    ("huber", 1),
    ("balanced", "no"),
    ("strengths", []),
    ("strengths", (-1,)),
    ("strengths", "1.0"),
    ("strengths", 1.0),
    ("inner_folds", "abc"),
    ("inner_folds", 1),
    ("calibrate", 0),
    ("share_tasks", "yes"),
    ("on_unusable", "ignore"),
    ("lora_patience", 0),
    ("gate_patience", 0),
    ("device", 0),
    ("memory_gb", "lots"),
    ("memory_gb", -1),
    ("seed", -1),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_that_is_not_allowed_is_named_with_what_is(name: str, value: Any) -> None:
    heads = EnsembleHeads().set_params(**{name: value})
    with pytest.raises(UsageError) as caught:
        heads.fit({}, {})  # refused before the data are looked at
    assert str(caught.value).startswith(f"{name} {value!r} is not allowed; it must be ")
    assert "\n" not in str(caught.value)


def test_every_option_has_a_rule_that_refuses_something_and_allows_its_default() -> None:
    assert set(EstimatorOptions.model_fields) == set(EnsembleHeads().get_params()) == {name for name, _ in WRONG}
    assert checked(EstimatorOptions, EnsembleHeads().get_params()) == EstimatorOptions()
    kept = {"rank": np.int64(4), "strengths": np.array([0.1, 1.0]), "inner_folds": 0, "memory_gb": 0}
    found = checked(EstimatorOptions, kept)
    assert (found.rank, found.strengths, found.inner_folds, found.memory_gb) == (4, (0.1, 1.0), 0, 0)
    found = checked(FitOptions, {"strengths": [1], "gate_input": ("signal",), "lora": np.bool_(True), "alpha": 16.5})
    assert (found.strengths, found.gate_input, found.lora, found.alpha) == ((1.0,), ("signal",), True, 16.5)


def test_an_option_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"^fit_heads\.options\.top_kk is no option; did you mean 'top_k'\?$"):
        checked(FitOptions, {"top_kk": 2}, "fit_heads.options.")
    with pytest.raises(ValidationError, match="whole number from 0"):
        FitHeadsSettings(options={"top_k": -2})
    with pytest.raises(TypeError, match="no parameter 'ranks'"):
        EnsembleHeads(ranks=3)


def test_scikit_learn_can_still_clone() -> None:
    heads = EnsembleHeads(rank=4, strengths=(1.0, 10.0))
    assert clone(heads).get_params() == heads.get_params()


def test_every_option_is_explained_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \| ([^|]+) \|$", page.split("## Options")[1].split("\n## ")[0], re.M)
    named = {name for cell, _, _ in rows for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(EnsembleHeads().get_params())
