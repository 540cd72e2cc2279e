"""What ingest is asked for, and where it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from cache.storage.locations import Location
from stages.settings import Count, Settings, number_or


class CohortSection(Settings):
    """Section `cohort` of params.yaml: where the ECGs come from, and what is kept of them.

    Attributes
    ----------
    source
        One of `stages.cohorts.list_cohorts()`.
    path
        The cohort's folder; no record outside of it is opened.
    limit
        Only the first records of the list.
    derive_leads
        Compute III, aVR, aVL and aVF from I and II where a file lacks them; the column `derived_leads` names them.
    pace_spikes
        Count pacemaker spikes into the column of that name, which is null otherwise.
    seconds
        What is kept of a record from its beginning, or "all".
    hash_patients
        Replace patient ids by keyed hashes; the key is that of ENSEMBLE_PATIENT_KEY.
    options
        Of the source; an unknown one is refused by name.
    """

    source: str
    path: str
    limit: Count | None = None
    derive_leads: bool = False
    pace_spikes: bool = False
    seconds: Annotated[float | Literal["all"], number_or("all", least=1, most=3600)] = 10.0
    hash_patients: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


class NamedCohortSection(CohortSection):
    """One entry of section `cohorts` of params.yaml: a source of several in one study.

    Attributes
    ----------
    name
        What its records have in the column `source`; the source's own name if not given.
    targets
        The study's target -> this source's; checked by `stages.cohorts.several`.
    """

    name: str | None = None
    targets: Any = None


SHARED_KEYS = ("derive_leads", "pace_spikes", "seconds", "hash_patients")
"""What is one for all rows of a study, whatever the source."""


class IngestSettings(CohortSection):
    """What one run of ingest is asked for.

    Attributes
    ----------
    seed
        Of the folds, where the cohort has none.
    append
        Add the records that the stores do not have behind those they have, which stay as they are, folds included.

    Examples
    --------
    >>> IngestSettings(source="ptbxl", path="ptb-xl", limit=100).seconds
    10.0
    """

    seed: int = 0
    append: bool = False


@dataclass(frozen=True)
class IngestPaths:
    """Where ingest writes, folders or object storage; bad_records.csv lies beside the records."""

    records: Location
    signals: Location
