"""Every registered expert in its small configuration, with numbers that no library's version changes, and records."""

from functools import cache

from torch import Tensor

from stages.experts import Expert, expert_class, list_experts
from stages.experts.contract_checks import RATE_HZ, Case, records

__all__ = ["NAMES", "PATHS", "RATE_HZ", "new_expert", "prepared", "records", "small_case", "small_expert"]

NAMES = list_experts()
PATHS = [(name, path) for name in NAMES for path in expert_class(name)[0].preprocessing_variants]
"""Every expert with each of its named input paths."""

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
