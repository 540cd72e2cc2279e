"""Which published collections hold the same ECGs: what tells that an expert has seen what it is judged on.

Experts name collections (`ExpertSpec.pretrained_on`), a source's own file says which ones it holds (`Cohort.holds`);
both are read as the parts they are made of. Two overlap where they share a part.
"""

from __future__ import annotations

from collections.abc import Iterable

from cache.errors import UsageError
from stages.cohorts._registry import cohort_class

_CHALLENGE_2020 = frozenset({"cpsc2018", "cpsc-extra", "incart", "ptb", "ptbxl", "georgia"})
_CHAPMAN = frozenset({"chapman", "ningbo"})

PARTS: dict[str, frozenset[str]] = {
    # PhysioNet/CinC Challenge 2021 = that of 2020 and Chapman/Ningbo.
    "challenge": _CHALLENGE_2020 | _CHAPMAN,
    "challenge2021": _CHALLENGE_2020 | _CHAPMAN,
    "challenge2020": _CHALLENGE_2020,
    # PhysioNet's ecg-arrhythmia: the hospitals of Shaoxing (Chapman) and Ningbo, published together.
    "chapman": _CHAPMAN,
    # 15 % of the patients of CODE, which is not public.
    "code15": frozenset({"code"}),
    # Excerpts of several databases, MIT-BIH's arrhythmia database among them.
    "qtdb": frozenset({"qtdb", "mitdb"}),
}
"""Collections that are something else than their own name. A new source does not belong here: its file says `holds`."""

SINGLE = frozenset(
    {
        *("mimic-iv-ecg", "ptbxl", "ptb", "ludb", "cpsc2018", "cpsc-extra", "incart", "georgia", "ningbo"),
        *("code", "heedb", "sph", "sami-trop", "hefei", "generated", "echonext"),
        *("mitdb", "isp", "lydus"),
    }
)
"""Collections that share no record with another one."""


def parts_of(collection: str) -> frozenset[str]:
    """Return the parts of a collection; one that is not known is its own only part."""
    return PARTS.get(collection, frozenset({collection}))


def parts_of_source(source: str) -> frozenset[str]:
    """Return the parts of what a source holds; one that is not installed is taken for a collection of its name."""
    try:
        holds = cohort_class(source).holds
    except UsageError:
        holds = None
    collections = (source,) if holds is None else holds
    return frozenset().union(*map(parts_of, collections))


def shared_collections(source: str, pretrained_on: Iterable[str]) -> list[str]:
    """Return the collections of `pretrained_on` that hold records of this source, or may hold some."""
    parts = parts_of_source(source)
    return [name for name in pretrained_on if parts_of(name) & parts]
