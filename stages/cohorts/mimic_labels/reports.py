"""The fifteen classes of the first machine-report line of MIMIC-IV-ECG (docs/cohorts.md).

Classes 0 to 13 are the fourteen most frequent whole lines of the collection; a line that says more, or something else,
is 14, other. Case, punctuation, decoration and the cart's spellings of one statement do not matter.
"""

from __future__ import annotations

import re
from functools import lru_cache

CLASSES = (
    "sinus rhythm",
    "sinus bradycardia",
    "sinus tachycardia",
    "atrial fibrillation",
    "sinus rhythm with borderline 1st degree a-v block",
    "sinus rhythm with 1st degree a-v block",
    "atrial fibrillation with rapid ventricular response",
    "sinus arrhythmia",
    "sinus rhythm with pac(s)",
    "ventricular pacing",
    "consider acute st elevation mi",
    "warning: data quality may affect interpretation",
    "sinus rhythm with pvc(s)",
    "possible ectopic atrial rhythm",
    "other",
)
OTHER = len(CLASSES) - 1
_SPELLINGS = (
    (re.compile(r"\b(?:first|1st|1)[ -]degree\b"), "1st degree"),
    (re.compile(r"\ba ?-? ?v block\b|\batrioventricular block\b"), "a-v block"),
    (re.compile(r"\bpremature atrial (?:contraction|complex)(?:\(e?s\)|e?s)?(?!\w)"), "pac(s)"),
    (re.compile(r"\bpremature ventricular (?:contraction|complex)(?:\(e?s\)|e?s)?(?!\w)"), "pvc(s)"),
    (re.compile(r"\b(pac|pvc)(?:\(s\)|\'?s)?(?!\w)"), r"\1(s)"),
    (re.compile(r"\bst[ -]elevation\b"), "st elevation"),
    (re.compile(r"\bmyocardial infarction\b"), "mi"),
    (re.compile(r"\b(?:ventricular[ -]paced rhythm|ventricular[ -]paced)\b"), "ventricular pacing"),
    (re.compile(r"\brvr\b|\brapid (?:ventricular (?:response|rate)|v[ -]rate)\b"), "rapid ventricular response"),
    (re.compile(r"\bw/ ?"), "with "),
    (re.compile(r"\bwith a (?=rapid ventricular response\b)"), "with "),
    (re.compile(r"\ba-?fib\b|\batrial fib\b|^af(?= with rapid ventricular response$)"), "atrial fibrillation"),
    (re.compile(r"^normal sinus rhythm$"), "sinus rhythm"),
)
_INDEX = {name: k for k, name in enumerate(CLASSES[:OTHER])}
LONGEST_LINE = 1000


def report_class(line: object) -> int | None:
    """Return 0 to 14 for a report's first line; None where there is no line."""
    if not isinstance(line, str) or not line.strip():
        return None
    return _class_of(line) if len(line) <= LONGEST_LINE else OTHER


@lru_cache(maxsize=65536)
def _class_of(line: str) -> int:
    plain = " ".join(line.lower().split()).strip(" *-.,;!\"'")
    for pattern, spelling in _SPELLINGS:
        plain = pattern.sub(spelling, plain)
    return _INDEX.get(plain, OTHER)
