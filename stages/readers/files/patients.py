"""Patient ids as keyed hashes (HMAC-SHA-256): one a patient, and nobody without the key can try ids.

The key lies in a file of its own, outside of everything that is written here, and is made where there is none.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cache.errors import UsageError

KEY_VARIABLE = "ENSEMBLE_PATIENT_KEY"
DEFAULT_KEY = Path("~/.config/ecg-ensemble/patient.key")
KEY_BYTES, LEAST_BYTES = 32, 16
HASH_DIGITS = 32
PREFIX = "h-"
"""Of a hashed id: collections have ids of as many hexadecimal digits that are none."""
_HASH = re.compile(rf"{PREFIX}[0-9a-f]{{{HASH_DIGITS}}}")
LONG_ENOUGH = 4
"""Characters of a patient id that are looked for in names of files; shorter ones occur by chance."""


def patient_key(outputs: Sequence[Path]) -> bytes:
    """Return the key, from the file that ENSEMBLE_PATIENT_KEY names, or of `DEFAULT_KEY`; made where there is none.

    Parameters
    ----------
    outputs
        Folders that are given away with the results: the key must lie in none of them.

    Raises
    ------
    UsageError
        The key lies in an output's folder, cannot be read or made, or is too short.
    """
    path = Path(os.environ.get(KEY_VARIABLE) or DEFAULT_KEY).expanduser().resolve()
    inside = next((folder for folder in outputs if path.is_relative_to(folder.resolve())), None)
    if inside is not None:
        raise UsageError(f"the patients' key {path} lies in {inside}, with the outputs; set {KEY_VARIABLE} elsewhere")
    try:
        if not path.exists():
            _make(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"the patients' key {path} cannot be read or made ({error.strerror})") from error
    if len(key) < LEAST_BYTES:
        raise UsageError(f"the patients' key {path} has fewer than {LEAST_BYTES} bytes; give a longer one")
    return key


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(KEY_BYTES))


def hashed(text: str, key: bytes) -> str:
    """Return the keyed hash of one id.

    >>> hashed("00123", b"0123456789abcdef") == hashed("123", b"0123456789abcdef")
    False
    """
    digest = hmac.new(key, text.encode("utf-8", "backslashreplace"), hashlib.sha256).hexdigest()
    return PREFIX + digest[:HASH_DIGITS]


def check_alike(kept: Sequence[str], path: object, *, hashing: bool) -> None:
    """Refuse to add hashed patients to plain ones, or plain ones to hashed: one patient would have two names.

    Parameters
    ----------
    kept
        Patient ids of the records that are there; those of records without a patient do not count.
    """
    ids = [who for who in kept if not who.startswith("record:")]
    are_hashed = bool(ids) and all(_HASH.fullmatch(who) for who in ids)
    if ids and are_hashed != hashing:
        has, asked = ("hashed", "without") if are_hashed else ("plain", "with")
        raise UsageError(
            f"{path} has {has} patient ids, and --append was asked for {asked} --hash-patients; do as before"
        )


def hash_patients(frame: pd.DataFrame, key: bytes, notes: list[str]) -> None:
    """Replace the patient ids of a list of records in place; `notes` says where names of files still hold them."""
    ids = [None if pd.isna(who) else str(who) for who in frame["patient_id"]]
    shown = [
        who is not None and len(who) >= LONG_ENOUGH and (who in str(path) or who in str(record))
        for who, path, record in zip(ids, frame["path"], frame["record_id"], strict=True)
    ]
    frame["patient_id"] = pd.Series(
        [None if who is None else hashed(who, key) for who in ids], index=frame.index, dtype=object
    )
    notes.append("patient ids are hashed with the key of ENSEMBLE_PATIENT_KEY")
    if any(shown):
        notes.append(f"{sum(shown)} paths or record ids hold the patient's id; `ensemble convert` renames them")
