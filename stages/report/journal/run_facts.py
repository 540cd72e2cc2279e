"""What a journal's tables and the checklist are made from: the outputs of earlier stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from stages.report.journal.flow import Flow

Json = dict[str, Any]


@dataclass(frozen=True)
class RunFacts:
    """What outputs of earlier stages say.

    Attributes
    ----------
    fit
        heads/config.json; empty where it is not given.
    facts
        Of the page: experts, commands, versions, decisions.
    """

    metrics: Json
    records: pd.DataFrame
    flow: Flow
    fit: Json
    facts: Json

    @property
    def decisions(self) -> Json:
        """Task -> its part of decisions.json."""
        return dict(self.facts.get("decisions", {}))

    @property
    def external(self) -> list[Json]:
        """The metrics.json of every fit of another study that was judged here."""
        return list(self.facts.get("external", []))

    @property
    def options(self) -> Json:
        """The fit's parameters."""
        return dict(self.fit.get("params", {}))
