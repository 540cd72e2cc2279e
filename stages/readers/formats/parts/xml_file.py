"""XML files of carts: within limits of size, without entities; and what texts in them mean."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from cache.errors import InputError
from stages.readers.formats.parts.contract import EXTRA

MAX_XML_BYTES = 64 << 20
MAX_TAGS = 400_000
"""Each takes some hundred bytes of memory; files of carts have a few thousand."""
_DATES = ("%Y-%m-%d", "%Y%m%d", "%m-%d-%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%b-%Y")
_CLOCKS = ("%H:%M:%S", "%H:%M", "%H%M%S")


def xml_root(path: str) -> Element:
    """Parse a file whose size has been looked at, with names without their namespaces.

    Raises
    ------
    InputError
        It is damaged, declares entities, has more tags than any ECG, or defusedxml is not installed.
    """
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import fromstring
    except ImportError as error:
        raise InputError(f"reading XML files needs defusedxml; run {EXTRA}") from error
    content = Path(path).read_bytes()
    check_tags(content)
    try:
        root = fromstring(content)
    except DefusedXmlException as error:
        raise InputError("its XML declares entities, which no ECG needs; they are refused") from error
    except (ParseError, LookupError, ValueError) as error:
        raise InputError(f"its XML is damaged ({_place(error)})") from error
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return root


def check_root(path: str, name: str) -> Element:
    """Parse a file as `xml_root` does, and refuse one whose first element has another name."""
    root = xml_root(path)
    if root.tag != name:
        raise InputError(f"its XML has no element {name} around it")
    return root


def check_file(path: str) -> None:
    """Refuse a file that would unpack to a tree of any size, before another parser sees it."""
    check_tags(Path(path).read_bytes())


def check_tags(content: bytes) -> None:
    """Refuse a file that would unpack to a tree of any size."""
    n_tags = content.count(b"<")
    if n_tags > MAX_TAGS:
        raise InputError(f"its XML has {n_tags} tags, more than {MAX_TAGS}: no ECG needs as many")


def _place(error: Exception) -> str:
    """Say where XML is damaged, without repeating what stands there."""
    line, column = getattr(error, "position", (0, 0))
    return f"line {line}, column {column}" if line else "it is not in the encoding that it states"


def text_of(root: Element | None, path: str) -> str | None:
    """Return the text of the first element of a path, without blanks around it; None where there is none."""
    found = None if root is None else root.find(path)
    text = "" if found is None else " ".join("".join(found.itertext()).split())
    return text or None


def number(text: str | None) -> float | None:
    """Return a finite number, also with a decimal comma; None of any other text.

    >>> number("4,88"), number("nan"), number(None)
    (4.88, None, None)
    """
    try:
        value = float((text or "").strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers_of(root: Element | None, paths: dict[str, str]) -> dict[str, float]:
    """Return name -> number of those paths that have one."""
    found = {name: number(text_of(root, path)) for name, path in paths.items()}
    return {name: value for name, value in found.items() if value is not None}


def moment(date: str | None, clock: str | None) -> datetime | None:
    """Return the moment that a date and a time of day mean; None where they are not known or mean none.

    >>> moment("02-29-2024", "13:05:09").isoformat()
    '2024-02-29T13:05:09'
    """
    day = next((found for form in _DATES if (found := _parsed(date, form)) is not None), None)
    time = next((found for form in _CLOCKS if (found := _parsed(clock, form)) is not None), None)
    return None if day is None or time is None else datetime.combine(day.date(), time.time())


def _parsed(text: str | None, form: str) -> datetime | None:
    try:
        return datetime.strptime((text or "").strip(), form)
    except ValueError:
        return None


def sex_of(text: str | None) -> str | None:
    """Return male or female; None of any other text.

    >>> sex_of("F"), sex_of("Male"), sex_of("unknown")
    ('female', 'male', None)
    """
    return {"m": "male", "male": "male", "f": "female", "female": "female"}.get((text or "").strip().lower())


def words_of(*texts: str | None) -> tuple[str, ...]:
    """Return the words of names, of two letters or more."""
    return tuple(word for text in texts for word in re.findall(r"[^\W_]{2,}", text or ""))


def lines_of_text(lines: Sequence[str | None]) -> tuple[str, ...]:
    """Return statements without blanks around them, each once."""
    return tuple(dict.fromkeys(line.strip(" .*") for line in lines if line and line.strip(" .*")))
