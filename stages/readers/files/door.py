"""The one door to ECG files of any format: ingest, predict, embed and convert all come through here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec

from cache.errors import InputError, UsageError
from stages.readers.files.sniff import SNIFFED_BYTES, beginning_of
from stages.readers.formats.known import FORMATS, format_of
from stages.readers.formats.parts.contract import EXTRA, Facts, Format, Reading
from stages.readers.lead_names import LeadNames
from stages.readers.paths import DataFolder, inside, open_file
from stages.readers.recording import SECONDS_KEPT, Recording

LONGEST_ID = 200


def what_is_read() -> str:
    """Return the names of the formats that are read, WFDB among them."""
    return ", ".join(["WFDB", *(one.name for one in FORMATS)])


def known_format(folder: str | DataFolder, path: str) -> Format | None:
    """Return the format of a file within a folder, by its content; None where it is none that is read.

    Raises
    ------
    InputError
        The file leaves the folder, is not there or cannot be opened.
    """
    descriptor, _ = open_file(folder, path)
    with os.fdopen(descriptor, "rb") as file:
        return format_of(beginning_of(file.read(SNIFFED_BYTES)))


def check_installed(formats: set[str]) -> None:
    """Refuse formats whose library is not installed, before a file is read.

    Raises
    ------
    UsageError
        One line that names the library and the extra.
    """
    for one in FORMATS:
        if one.name in formats and one.package is not None and find_spec(one.package) is None:
            raise UsageError(f"reading {one.name} files needs {one.package}; run {EXTRA}")


def read_file(
    folder: str | DataFolder, path: str, seconds: float | None = SECONDS_KEPT, lead_names: LeadNames = ()
) -> Recording:
    """Read the rhythm of one file, of whatever format it is.

    Parameters
    ----------
    folder
        Nothing outside of it is opened, unless links are followed.
    seconds
        What is kept of a record; a second more is read. None: all.
    lead_names
        A study's own names of leads.

    Raises
    ------
    InputError
        The file is of no format that is read, too large, damaged or not calibrated; or a library is missing.
    """
    found = _checked(folder, path)
    with _naming_damage(found):
        return found.read(inside(folder, path), Reading(seconds, lead_names))


def facts_of(folder: str | DataFolder, path: str) -> Facts:
    """Read what a file says of its ECG beside the samples; raises as `read_file` does."""
    found = _checked(folder, path)
    with _naming_damage(found):
        facts = found.facts(inside(folder, path))
        return replace(facts, test_id=_plain_id(facts.test_id), patient_id=_plain_id(facts.patient_id))


def _plain_id(text: str | None) -> str | None:
    """Return an id that is one; None of what is no printable text, or too long for one."""
    plain = (text or "").strip()
    return plain if plain and len(plain) <= LONGEST_ID and plain.isprintable() else None


@contextmanager
def _naming_damage(found: Format) -> Iterator[None]:
    """Say of any failure that the file is damaged, without what the failure says: it may repeat a name."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"it is damaged and cannot be read as {found.name} ({type(error).__name__})") from error


def _checked(folder: str | DataFolder, path: str) -> Format:
    descriptor, n_bytes = open_file(folder, path)
    with os.fdopen(descriptor, "rb") as file:
        found = format_of(beginning_of(file.read(SNIFFED_BYTES)))
    if found is None:
        raise InputError(f"it is of none of the formats that are read: {what_is_read()}")
    if n_bytes > found.largest_bytes:
        raise InputError(
            f"it has {n_bytes >> 20} MB, more than the {found.largest_bytes >> 20} that are read of {found.name}"
        )
    return found
