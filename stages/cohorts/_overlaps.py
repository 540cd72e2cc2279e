"""Which published collections hold the same ECGs: what tells that an expert has seen what it is judged on.

Experts name collections (`ExpertSpec.pretrained_on`), studies name sources (`stages.cohorts`); both are read as the
parts they are made of. Two names overlap where they share a part.
"""

from __future__ import annotations

from collections.abc import Iterable

_CHALLENGE_2020 = frozenset({"cpsc2018", "cpsc-extra", "incart", "ptb", "ptbxl", "georgia"})
_CHAPMAN = frozenset({"chapman", "ningbo"})
_CODE = frozenset({"code"})

PARTS: dict[str, frozenset[str]] = {
    # PhysioNet/CinC Challenge 2021 = that of 2020 and Chapman/Ningbo. The source `challenge` takes any part of either.
    "challenge": _CHALLENGE_2020 | _CHAPMAN,
    "challenge2021": _CHALLENGE_2020 | _CHAPMAN,
    "challenge2020": _CHALLENGE_2020,
    # PhysioNet's ecg-arrhythmia: the hospitals of Shaoxing (Chapman) and Ningbo, published together.
    "chapman": _CHAPMAN,
    # 15 % of the patients of CODE, which is not public.
    "code15": _CODE,
    # The EnECG authors' labels beside the signals of MIMIC-IV-ECG.
    "enecg-jsonl": frozenset({"mimic-iv-ecg"}),
    # Nobody but the user knows what they hold.
    "wfdb": frozenset(),
    "arrays": frozenset(),
}
"""Sources and collections that are something else than their own name."""

SINGLE = frozenset(
    {
        *("mimic-iv-ecg", "ptbxl", "ptb", "ludb", "cpsc2018", "cpsc-extra", "incart", "georgia", "ningbo"),
        *("code", "heedb", "sph", "sami-trop", "hefei", "generated"),
        *("qtdb", "isp", "mitdb", "lydus"),
    }
)
"""Collections that share no record with another one."""


def parts_of(name: str) -> frozenset[str]:
    """Return the parts of a source or collection; one that is not known is its own only part."""
    return PARTS.get(name, frozenset({name}))


def shared(source: str, pretrained_on: Iterable[str]) -> list[str]:
    """Return the collections of `pretrained_on` that hold records of this source, or may hold some."""
    return [name for name in pretrained_on if parts_of(source) & parts_of(name)]
