"""Every format as the tests' own writers write it: one line a way."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cache.signals import LEADS
from tests.hospital import write_binary, write_xml
from tests.hospital.ecgs import EIGHT, Ecg


class Way(NamedTuple):
    """How one file is written: writer, microvolts of a count, rate and leads; `name` is what the door calls it."""

    name: str
    write: Callable[[Ecg, Path], None]
    step_uv: float = 5.0
    rate_hz: int = 500
    leads: tuple[str, ...] = LEADS


WAYS = {
    "muse": Way("GE MUSE XML", write_xml.muse, 4.88, 500, EIGHT),
    "muse at 250 Hz": Way("GE MUSE XML", write_xml.muse, 4.88, 250, EIGHT),
    "muse as UTF-16": Way("GE MUSE XML", partial(write_xml.muse, encoding="UTF-16", exponent=2), 4.88, 500, EIGHT),
    "cardiosoft": Way("GE CardioSoft XML", write_xml.cardiosoft),
    "philips 1.04 XLI": Way("Philips Sierra XML", write_xml.philips),
    "philips 1.03": Way("Philips Sierra XML", partial(write_xml.philips, version="1.03", encoding="UTF-8")),
    "philips 1.04.01": Way("Philips Sierra XML", partial(write_xml.philips, version="1.04.01")),
    "philips 1.04.02 plain": Way("Philips Sierra XML", partial(write_xml.philips, version="1.04.02", xli=False)),
    "aecg": Way("HL7 aECG", write_xml.aecg),
    "mortara": Way("Mortara ELI XML", write_xml.mortara, 2.5),
    "dicom": Way("DICOM ECG", write_binary.dicom, 2.5),
    "dicom, eight leads": Way("DICOM ECG", write_binary.dicom, 4.88, 500, EIGHT),
    "edf": Way("EDF/EDF+", write_binary.edf, write_binary.edf_step_uv(5.0)),
    "scp": Way("SCP-ECG", write_binary.scp),
    "scp, Huffman": Way("SCP-ECG", partial(write_binary.scp, packed=True)),
    "scp, Huffman of first differences": Way("SCP-ECG", partial(write_binary.scp, packed=True, differences=1)),
    "scp, Huffman of second differences": Way("SCP-ECG", partial(write_binary.scp, packed=True, differences=2)),
    "scp, beat subtracted": Way("SCP-ECG", partial(write_binary.scp, subtract=True)),
    "ishne": Way("ISHNE Holter", write_binary.ishne, 5.0, 500, EIGHT),
    "mfer": Way("MFER", write_binary.mfer),
    "mfer, low byte first": Way("MFER", partial(write_binary.mfer, little=True)),
}
ONE_EACH = {way.name: way for way in reversed(WAYS.values())}
"""One way of each format."""
