"""The embedded cohort: a seeded generator of ECGs in MIMIC-IV-ECG's own layout, for the demo and the tests.

Not here: reading that layout (the `mimic-iv-ecg` source under stages/cohorts).
"""

from stages.synthetic.generate import generate

__all__ = ["generate"]
