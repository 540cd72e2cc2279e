"""Fixtures every test may use: where the real ECGs and the official outputs lie, when this machine has them."""

import os
from pathlib import Path

import pytest


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the folder with {what}")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable}={value} is not a folder; unset it or point it at {what}")
    return folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the real ECGs (ptbxl/, ludb/, challenge2021/)."""
    return _folder("ENSEMBLE_TEST_DATA", "real ECG records")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder with the official code's outputs on small random weights."""
    return _folder("ENSEMBLE_PARITY", "official outputs")
