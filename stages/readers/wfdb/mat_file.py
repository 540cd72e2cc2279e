"""What the first bytes of a .mat file say of its samples: WFDB reads them as they lie, whatever they are."""

from __future__ import annotations

import os
import struct

from cache.errors import InputError

HEAD_BYTES = 20
INT16_LITTLE_ENDIAN = 30
_PRECISIONS = range(6)
_SAVE_AS = "save an int16 array [lead, time] as MATLAB v4"
LONGEST_NAME = 256


def is_mat(file_name: str) -> bool:
    """Whether a file is a MATLAB file by its name."""
    return file_name.lower().endswith(".mat")


def check_mat(descriptor: int, file_name: str, offset: int, n_signals: int) -> None:
    """Refuse a MATLAB file whose own first bytes say that its samples are not what the header says.

    A v4 file begins with five numbers: type, rows, columns, whether complex, length of the name that follows. Columns
    lie one after the other, so an array [lead, time] is what WFDB calls format 16. A file that begins otherwise is left
    to the checksums.

    Raises
    ------
    InputError
        It is of v5 or v7.3, not of int16, transposed, or its samples begin elsewhere.
    """
    head = os.pread(descriptor, HEAD_BYTES, 0)
    for version in ("5.0", "7.3"):
        if head.startswith(f"MATLAB {version}".encode()):
            raise InputError(f"{file_name} is of MATLAB v{version}, which WFDB does not read; {_SAVE_AS}")
    if len(head) < HEAD_BYTES:
        return
    for order in "<>":
        kind, n_rows, n_columns, imaginary, name_length = struct.unpack(f"{order}5i", head)
        if _is_v4(kind, imaginary, name_length) and n_rows > 0 and n_columns > 0:
            break
    else:
        return
    if kind != INT16_LITTLE_ENDIAN or order == ">" or imaginary:
        raise InputError(f"{file_name} holds no little-endian int16 numbers (MATLAB v4 type {kind}); {_SAVE_AS}")
    if n_rows != n_signals:
        turned = ", the other way round" if n_columns == n_signals else ""
        raise InputError(
            f"{file_name} holds an array [{n_rows}, {n_columns}] for {n_signals} leads{turned}; {_SAVE_AS}"
        )
    if offset != HEAD_BYTES + name_length:
        raise InputError(f"{file_name}: its samples begin at byte {HEAD_BYTES + name_length}, its header says {offset}")


def _is_v4(kind: int, imaginary: int, name_length: int) -> bool:
    machine, reserved, precision, matrix = (kind // 1000, kind // 100 % 10, kind // 10 % 10, kind % 10)
    return (
        kind >= 0
        and machine in (0, 1)
        and reserved == 0
        and precision in _PRECISIONS
        and matrix in (0, 1, 2)
        and imaginary in (0, 1)
        and 1 <= name_length <= LONGEST_NAME
    )
