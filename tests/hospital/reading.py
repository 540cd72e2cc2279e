"""What the tests of the contract share: write a file, read it, and see it refused."""

import numpy as np
import pytest

from cache.errors import InputError
from stages.readers.files import read_ecg
from stages.readers.rows import RowOptions
from tests.hospital.ecgs import beats_uv, ecg_of


def written(tmp_path, write, ecg=None, **how):
    path = tmp_path / "file"
    write(ecg or ecg_of(beats_uv(), 5.0), path, **how)
    return path


def read_uv(path, **options):
    """Return the row of a file as float64 microvolts."""
    return read_ecg(path, RowOptions(**options)).signals_mv.astype(np.float64) * 1000


def refused(path, **options):
    with pytest.raises(InputError) as caught:
        read_ecg(path, RowOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)
