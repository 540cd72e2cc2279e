"""Refuses signals that are not in millivolts, expert by expert: those that scale every lead anew take any unit."""

from __future__ import annotations

from cache.errors import UsageError
from cache.record_rows import RecordRows
from stages.embed.settings import EmbedSettings
from stages.experts import expert_class


def check_amplitude(settings: EmbedSettings, records: RecordRows) -> None:
    """Refuse an expert that needs millivolts where the records' signals are in another unit, unless it is asked for.

    Raises
    ------
    UsageError
        Naming the expert, the cohort and the option.
    """
    amplitude = records.row_options.get("amplitude", "mV")
    if amplitude == "mV" or settings.zscores_as_mv:
        return
    cls, variant = expert_class(settings.expert)
    preprocessing = settings.preprocessing or cls.preprocessing_variants[0]
    if cls.published_spec(variant).needs_millivolts(preprocessing):
        raise UsageError(
            f"expert '{settings.expert}' needs millivolts, and the signals of {', '.join(records.sources())} are "
            f"{amplitude}s; experts.{settings.expert}.zscores_as_mv: true in params.yaml (or embed --zscores-as-mv) "
            "takes one standard deviation for one millivolt"
        )
