"""How much of a record is read, and how much a header may promise: it is untrusted."""

from __future__ import annotations

from cache.errors import InputError
from stages.readers.recording import READ_MARGIN_S

MAX_SAMPLES = 50_000_000
MAX_SAMPLES_KEPT = 20_000_000
"""Of what is read of a record, in all leads: 55 minutes of twelve at 500 Hz."""
MAX_BYTES = MAX_SAMPLES
MAX_SEGMENTS_READ = 1024


def frames_wanted(rate_hz: float, seconds: float | None) -> int:
    """Return how many frames are read at most; `rate_hz` is that of the frames, `seconds` what is kept (None: all)."""
    return MAX_SAMPLES if seconds is None else int((seconds + READ_MARGIN_S) * rate_hz) + 1


def check_size(n_samples: int) -> None:
    """Refuse more samples than a recording has."""
    if n_samples > MAX_SAMPLES_KEPT:
        raise InputError(f"what is read of it has {n_samples} samples by its header, more than {MAX_SAMPLES_KEPT}")


def beside(above: str, file_name: str) -> str:
    """Return the path of a file that a header names, which must lie beside the header."""
    if "/" in file_name or "\\" in file_name:
        raise InputError(f"its header names the file '{file_name}' in another folder")
    if file_name.endswith(".hea"):
        raise InputError(f"its header names a header, '{file_name}', as the file of its samples")
    return f"{above}/{file_name}" if above else file_name
