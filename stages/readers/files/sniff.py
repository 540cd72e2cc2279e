"""Tells of which format a file is by its first bytes, never by its name."""

from __future__ import annotations

import codecs
import re

from stages.readers.formats.parts.contract import Beginning

SNIFFED_BYTES = 1 << 16
_NAME = re.compile(r"<(?:[A-Za-z_][\w.-]*:)?([A-Za-z_][\w.-]*)[\s/>]")
_SKIPPED = (("<?", "?>"), ("<!--", "-->"))
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def beginning_of(content: bytes) -> Beginning:
    """Return what a format is known by, of the first bytes of a file.

    Examples
    --------
    >>> beginning_of(b'<?xml version="1.0"?><!-- by a cart --><RestingECG>').root
    'RestingECG'
    """
    return Beginning(content, _root(content))


def _root(content: bytes) -> str:
    text = _text(content)
    place = 0
    while True:
        place = _behind_blanks(text, place)
        for start, end in _SKIPPED:
            if text.startswith(start, place):
                found = text.find(end, place)
                if found < 0:
                    return ""
                place = found + len(end)
                break
        else:
            if text.startswith("<!DOCTYPE", place):
                place = _behind_doctype(text, place)
                continue
            name = _NAME.match(text, place)
            return name[1] if name else ""


def _behind_blanks(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _behind_doctype(text: str, place: int) -> int:
    """Return the place behind a document type, whose own part stands in square brackets."""
    end, inner = text.find(">", place), text.find("[", place)
    if 0 <= inner < end:
        closed = text.find("]", inner)
        end = text.find(">", closed) if closed >= 0 else -1
    return len(text) if end < 0 else end + 1


def _text(content: bytes) -> str:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, errors="ignore")
    if content[:2] == b"<\0":
        return content.decode("utf-16-le", errors="ignore")
    if content[:2] == b"\0<":
        return content.decode("utf-16-be", errors="ignore")
    # Only what begins as XML does is worth decoding: most files of a folder are something else.
    return content.decode("latin-1") if content.lstrip()[:1] == b"<" else ""
