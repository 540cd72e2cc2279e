"""The formats that are read: one file each; what they are known by is looked at in this order, the surest first."""

from __future__ import annotations

from stages.readers.formats import aecg, cardiosoft, dicom, edf, ishne, mfer, mortara, muse, philips, scp
from stages.readers.formats.parts.contract import Beginning, Format

FORMATS: tuple[Format, ...] = (
    muse.FORMAT,
    cardiosoft.FORMAT,
    philips.FORMAT,
    aecg.FORMAT,
    mortara.FORMAT,
    dicom.FORMAT,
    edf.FORMAT,
    ishne.FORMAT,
    scp.FORMAT,
    mfer.FORMAT,
)


def format_of(beginning: Beginning) -> Format | None:
    """Return the format of a file that begins so; None where it is none that is read."""
    return next((one for one in FORMATS if one.knows(beginning)), None)
