"""Versions of the packages that numbers depend on, as outputs and run records name them.

`__version__` is this package's, as it is installed; "unknown" for a folder on PYTHONPATH that is not.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("ecg-ensemble", "torch", "transformers", "peft", "numpy", "scipy", "zarr", "scikit-learn")


def package_versions() -> dict[str, str]:
    """Return name -> version of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module 'stages.versions' has no attribute '{name}'")
    return package_versions().get("ecg-ensemble", "unknown")
