"""Which of the twelve standard leads a name means, as carts, DICOM, SCP-ECG, HL7 aECG, EDF and people write them.

A name is compared by its normal form: case, blanks, underscores, accents, words around it (`ECG`, `Lead`,
`MDC_ECG_LEAD_`), a unit behind it and what stands in brackets do not matter. Some spellings can be judged only beside
the other names of the file, e.g. `C3`, a chest lead in one file and an EEG electrode in another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from cache.errors import InputError
from cache.signals import LEADS

LeadNames = tuple[tuple[str, str], ...]
"""A study's own spellings: (name in the files, standard lead)."""

_PLACES = {name.upper(): k for k, name in enumerate(LEADS)}
_CHEST, _CHEST_OF_C = range(6, 12), set(range(1, 7))
N_LIMB_LEADS = 3
_WORDS = (
    "MDC|ELEC|POTL|ECG|EKG|LEAD|DERIVATION|DERIVACION|DERIVACAO|DERIVAZIONE|DERIV|ABLEITUNG|ABL|AVLEDNING|AFLEIDING|"
    "EINTHOVEN|GOLDBERGER|WILSON|UNIPOLAR|ОТВЕДЕНИЕ|导联"
)
# A minus before the name is no separator, but for one right behind a word: -aVR is aVR turned over.
_BEFORE = rf"[\s_]*(?P<words>(?:(?:{_WORDS})(?:[\s_.:/]*|-))*)"
_UNIT = r"(?:MV|UV|\u039cV|MICROVOLTS?|MILLIVOLTS?|VOLTS?)"
_BEHIND = (
    rf"(?:[\s_]*(?:[(\[]\s*(?:{_UNIT}|V|EINTHOVEN|GOLDBERGER|WILSON|C[1-6]|V[1-6])\s*[)\]]"
    rf"|,\s*AUGMENTED VOLTAGE.*|(?<=[\s_]){_UNIT}|ECG|EKG|LEAD|导联))*[\s_]*"
)
_NAME = re.compile(
    _BEFORE + r"(?:(?:D[\s_.-]?|L)?(?P<roman>I{1,3})|A[\s_.]?V[\s_.]?(?P<augmented>[RLF])|V[\s_]?(?P<unipolar>[RLF])"
    r"|V[\s_.-]?0?(?P<chest>[1-6])|C[\s_]?(?P<c>[1-9])|(?P<d>D[\s_.]?)?0?(?P<number>[1-9]\d?))" + _BEHIND
)
_LIMB_WORD = re.compile(r"LEAD|DERIV|ABL|AVLEDNING|AFLEIDING|ОТВЕДЕНИЕ|导联")
_EEG = re.compile(r"(?:EEG.*|F(?:P|C|T)?[\dZ]\d?|(?:O|T|P|CP|TP|PO)[\dZ]\d?|CZ|A[12]|M[12])(?:[-\s].*)?")


class Leads(NamedTuple):
    """What the names of a file mean.

    Attributes
    ----------
    columns
        (place in `cache.signals.LEADS`, column of the file), in standard order.
    repeated
        Likewise: further columns with the name of one in `columns`.
    others
        Names that are no standard lead.
    """

    columns: tuple[tuple[int, int], ...]
    repeated: tuple[tuple[int, int], ...]
    others: tuple[str, ...]


@lru_cache(maxsize=1024)
def arrange(names: tuple[str, ...], lead_names: LeadNames = ()) -> Leads:
    """Say which columns of a file are standard leads.

    Examples
    --------
    >>> arrange(("ECG I", "MDC_ECG_LEAD_AVR", "PLETH"))
    Leads(columns=((0, 0), (3, 1)), repeated=(), others=('PLETH',))
    >>> arrange(("CH1",), lead_names=(("CH1", "V1"),)).columns
    ((6, 0),)
    """
    places = [_place(name, lead_names) for name in _in_context(names)]
    first: dict[int, int] = {}
    repeated, others = [], []
    for column, (name, place) in enumerate(zip(names, places, strict=True)):
        if place is None:
            others.append(name)
        elif place in first:
            repeated.append((place, column))
        else:
            first[place] = column
    return Leads(tuple(sorted(first.items())), tuple(repeated), tuple(others))


def lead_columns(names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Say where each standard lead lies: pairs (place in `cache.signals.LEADS`, index in `names`), in standard order.

    Raises
    ------
    InputError
        No standard lead at all, or two of one name.
    """
    leads = arrange(names)
    if leads.repeated:
        raise InputError(f"two leads are named {LEADS[leads.repeated[0][0]]}; nobody can say which is which")
    if not leads.columns:
        raise no_standard_lead(names)
    return list(leads.columns)


def no_standard_lead(names: Sequence[str]) -> InputError:
    """Return the error of a record without a lead that is known."""
    given = ", ".join(names)[:120] or "it has none"
    return InputError(
        f"none of its leads ({given}) is one of the standard twelve; "
        "cohort.options: {lead_names: {NAME: I}} says which is which"
    )


def standard_lead(name: str) -> str | None:
    """Return the standard lead that a name means by itself, None where it means none."""
    places = [place for place, _ in arrange((name,)).columns]
    return LEADS[places[0]] if places else None


def _normal(name: str) -> str:
    """Return a name in upper case without accents, in compatibility form (Ⅱ is II)."""
    parts = unicodedata.normalize("NFKD", name.strip())
    return "".join(part for part in parts if not unicodedata.combining(part)).upper()


class _Spelt(NamedTuple):
    """One name: as given, its place if the name alone says it, or the numbering that it belongs to."""

    name: str
    place: int | None
    numbering: str = ""
    number: int = 0


def _spelt(name: str) -> _Spelt:
    found = _NAME.fullmatch(_normal(name))
    if found is None:
        return _Spelt(name, None)
    for group, before in (("roman", ""), ("augmented", "AV"), ("unipolar", "AV"), ("chest", "V")):
        if found[group]:
            return _Spelt(name, _PLACES[before + found[group]], "unipolar" if group == "unipolar" else "")
    if found["c"]:
        return _Spelt(name, None, "C", int(found["c"]))
    limb = "D" if found["d"] else "lead" if _LIMB_WORD.search(found["words"]) else ""
    return _Spelt(name, None, limb, int(found["number"]))


def _in_context(names: tuple[str, ...]) -> list[_Spelt]:
    """Read each name; those that one numbering shares only where the others agree with it.

    Lead 1, 2, 3 are I, II, III unless the file counts on to more. C1 to C6 are the chest leads where all six are there,
    without V1 to V6 or any electrode of an EEG. VR, VL and VF are aVR, aVL and aVF unless these are there too.
    """
    spelt = [_spelt(name) for name in names]
    known = {one.place for one in spelt if one.place is not None and not one.numbering}
    numbers = {kind: {one.number for one in spelt if one.numbering == kind} for kind in ("C", "D", "lead")}
    chest = numbers["C"] == _CHEST_OF_C and known.isdisjoint(_CHEST) and not any(map(_is_eeg, names))
    limbs = {kind for kind in ("D", "lead") if numbers[kind] and max(numbers[kind]) <= N_LIMB_LEADS}
    augmented = known.isdisjoint(range(3, 6))
    read = []
    for one in spelt:
        place = one.place
        if one.numbering in limbs:
            place = one.number - 1
        elif one.numbering == "C":
            place = _CHEST[one.number - 1] if chest else None
        elif one.numbering == "unipolar" and not augmented:
            place = None
        read.append(one._replace(place=place))
    return read


def _is_eeg(name: str) -> bool:
    return _EEG.fullmatch(_normal(name)) is not None


def _place(spelt: _Spelt, lead_names: LeadNames) -> int | None:
    for name, lead in lead_names:
        if _normal(name) == _normal(spelt.name):
            return _PLACES.get(lead.upper())
    return spelt.place
