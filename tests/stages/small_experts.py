"""Every registered expert in its small configuration, with numbers that no library's version changes, and records."""

from functools import cache
from typing import Any

import pytest
from torch import Tensor

from stages.experts import Expert, ExpertSpec, expert_class, list_experts
from stages.experts.contract_checks import RATE_HZ, Case, records

__all__ = [
    "EACH_CODE",
    "EACH_CODE_PATH",
    "NAMES",
    "PATHS",
    "RATE_HZ",
    "new_expert",
    "prepared",
    "published",
    "records",
    "small_case",
    "small_expert",
]

NAMES = list_experts()
PATHS = [(name, path) for name in NAMES for path in expert_class(name)[0].preprocessing_variants]
"""Every expert with each of its named input paths."""
SAME_CODE = ("-small", "-base", "-medium", "-large", "-utica", "-plus", "-r1")
"""Endings of names whose plain sibling runs the same code in the same sizes."""


def _repeated(name: str) -> list[Any]:
    return [pytest.mark.slow] * name.endswith(SAME_CODE)


EACH_CODE = [pytest.param(name, marks=_repeated(name)) for name in NAMES]
"""Every expert; those whose code another one runs already are slow tests."""
EACH_CODE_PATH = [pytest.param(name, path, marks=_repeated(name)) for name, path in PATHS]


def published(name: str) -> ExpertSpec:
    """Return the spec of the published architecture, without building anything: test files are read in every run."""
    cls, variant = expert_class(name)
    return cls.published_spec(variant)


small_case = cache(Case)


def new_expert(name: str, preprocessing: str | None = None) -> Expert:
    """Build an expert in its small configuration and draw its parameters."""
    return Case(name, preprocessing).fresh()


def small_expert(name: str, preprocessing: str | None = None) -> Expert:
    """Return the expert that tests share; not to be changed."""
    return small_case(name, preprocessing).expert


def prepared(name: str, preprocessing: str | None = None) -> Tensor:
    """Prepare three records once; [3, windows, ...], not to be written to."""
    return small_case(name, preprocessing).x
