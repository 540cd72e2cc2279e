"""The embedded cohort: a seeded generator of ECGs in MIMIC-IV-ECG's own layout, for the demo and the tests.

Not here: reading that layout (the `mimic-iv-ecg` source under stages/cohorts).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stages.synthetic.settings import GeneratePaths, GenerateSettings, GenerateSummary

if TYPE_CHECKING:
    from stages.synthetic.stage import run

__all__ = ["GeneratePaths", "GenerateSettings", "GenerateSummary", "run"]


def __getattr__(name: str) -> Any:
    """Import the generator when it is first asked for."""
    if name != "run":
        raise AttributeError(f"module 'stages.synthetic' has no attribute '{name}'")
    return import_module("stages.synthetic.stage").run
