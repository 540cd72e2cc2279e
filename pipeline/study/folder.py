"""A study: the folder a person works in, and the names of the files in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from cache.errors import MissingFileError, UsageError
from cache.storage.locations import Location, within
from pipeline.study.cohorts import SEVERAL, sources_of
from pipeline.study.params import EMBEDDINGS, PARAMS_FILE, RECORDS, SIGNALS, Params, option_fault, read_params
from stages.embed.settings import DEFAULT_WEIGHTS, ExpertSection
from stages.ingest.settings import CohortSection
from stages.settings import Machine


@dataclass(frozen=True)
class Study:
    """Paths of one study, relative to its folder, and its parameters (read when first asked for)."""

    folder: Path = Path()

    @cached_property
    def params(self) -> Params:
        """The checked params.yaml, options of the source included."""
        from stages.cohorts import check_options

        params = read_params(self.folder)
        place = "cohorts" if params.cohort.source == SEVERAL else "cohort.options"
        check_options(params.cohort.source, params.cohort.options, f"{self.folder / PARAMS_FILE}: {place}")
        return params

    @cached_property
    def records(self) -> Location:
        """records.parquet, or where params.yaml says; a URL if it is one."""
        return within(self.folder, self.params.records if self._has_params() else RECORDS)

    @cached_property
    def signals(self) -> Location:
        """signals.zarr, or where params.yaml says; a URL if it is one."""
        return within(self.folder, self.params.signals if self._has_params() else SIGNALS)

    @cached_property
    def embeddings(self) -> Location:
        """Folder of the experts' stores, or where params.yaml says; a URL if it is one."""
        return within(self.folder, self.params.embeddings if self._has_params() else EMBEDDINGS)

    def embedding(self, expert: str) -> Location:
        """One expert's store."""
        return self.embeddings / f"{expert}.zarr"

    def marker(self, expert: str) -> Path:
        """Return the name of the file that stands in the study for a store behind a URL."""
        return self.folder / EMBEDDINGS / f"{expert}.json"

    @property
    def heads(self) -> Path:
        """Folder of the fit."""
        return self.folder / "heads"

    @property
    def metrics(self) -> Path:
        """metrics.json."""
        return self.folder / "metrics.json"

    @property
    def headline(self) -> Path:
        """headline.json."""
        return self.folder / "headline.json"

    @property
    def external(self) -> Path:
        """Folder of what fits of other studies were found to be worth here."""
        return self.folder / "external"

    @property
    def evaluation(self) -> Path:
        """evaluation.json."""
        return self.folder / "evaluation.json"

    @property
    def decisions(self) -> Path:
        """decisions.json."""
        return self.folder / "decisions.json"

    @property
    def robustness(self) -> Path:
        """Folder of what disturbances do: NAME.json and NAME.parquet of each run."""
        return self.folder / "robustness"

    @property
    def leaderboard(self) -> Path:
        """Folder of leaderboards: a folder NAME of each run."""
        return self.folder / "leaderboard"

    @property
    def fit_costs(self) -> Path:
        """fit_costs.json."""
        return self.folder / "fit_costs.json"

    @property
    def evaluate_costs(self) -> Path:
        """evaluate_costs.json."""
        return self.folder / "evaluate_costs.json"

    @property
    def predictions(self) -> Path:
        """predictions.parquet."""
        return self.folder / "predictions.parquet"

    @property
    def gate_weights(self) -> Path:
        """gate_weights.parquet."""
        return self.folder / "gate_weights.parquet"

    @property
    def plots(self) -> Path:
        """Folder that `dvc plots` reads."""
        return self.folder / "plots"

    @property
    def tables(self) -> Path:
        """Folder of the report's tables as CSV and LaTeX."""
        return self.folder / "tables"

    @property
    def report(self) -> Path:
        """report.html."""
        return self.folder / "report.html"

    @property
    def state(self) -> Path:
        """Claims, run records and caches: outside every DVC output, safe to delete."""
        return self.folder / ".ensemble"

    def source_folders(self) -> dict[str, tuple[str, Path]]:
        """Return what the column `source` may say -> kind of source, and the folder with its raw records."""
        found = sources_of(self.params.cohort)
        return {name: (kind, self.folder / Path(path).expanduser()) for name, (kind, path) in found.items()}

    @property
    def seed(self) -> int:
        """The study's seed; 0 where there is no params.yaml."""
        return self.params.seed if self._has_params() else 0

    @property
    def follows_links(self) -> bool:
        """Whether links may lead out of the cohort's folder; not where there is no params.yaml."""
        return self._has_params() and bool(self.params.cohort.options.get("follow_links", False))

    def machine(self, **given: object) -> Machine:
        """Join section `machine` of params.yaml with options that were given; None is not given."""
        section = self.params.machine if self._has_params() else Machine()
        options = {name: value for name, value in given.items() if value is not None}
        try:
            return Machine.model_validate({**section.model_dump(), **options})
        except ValidationError as error:
            raise UsageError(option_fault(error)) from error

    def cohort(self, source: str | None = None, path: Path | None = None, labels: Path | None = None) -> CohortSection:
        """Join params.yaml with what the options say.

        With both `source` and `path` no params.yaml is needed. Another source than params.yaml's has a path of its own
        and none of its options.
        """
        if source is not None and path is not None and not self._has_params():
            chosen = CohortSection(source=source, path=str(path))
        else:
            chosen = self.params.cohort
            if source is not None and source != chosen.source:
                if path is None:
                    raise UsageError(f"--source {source}: say where its records are, with --path")
                chosen = CohortSection(source=source, path=str(path))
            elif path is not None:
                chosen = chosen.model_copy(update={"path": str(path)})
        if labels is not None:
            chosen = chosen.model_copy(update={"options": {**chosen.options, "labels": str(labels)}})
        return chosen

    def _has_params(self) -> bool:
        return (self.folder / PARAMS_FILE).is_file()

    def expert_params(self, name: str) -> ExpertSection:
        """Parameters of one expert; an expert that params.yaml does not name has the defaults."""
        return self.params.experts.get(name) or ExpertSection()

    def weights_of(self, name: str) -> Path | None:
        """Return the weights file that params.yaml names, or None for the expert's own."""
        weights = self.expert_params(name).weights
        return None if weights == DEFAULT_WEIGHTS else self.folder / Path(weights).expanduser()

    def fitted_experts(self) -> list[str]:
        """Return the experts that the fit in `heads/` was made on."""
        config = self.heads / "config.json"
        if not config.is_file():
            raise MissingFileError(f"{config} does not exist; run `ensemble fit-heads` first")
        return list(json.loads(config.read_text(encoding="utf-8"))["experts"])

    def check_experts(self, names: list[str]) -> list[str]:
        """Return `names` if params.yaml names them all."""
        unknown = [name for name in names if name not in self.params.experts]
        if unknown:
            known = ", ".join(self.params.experts)
            raise UsageError(f"--experts: '{unknown[0]}' is not in params.yaml; there are: {known}")
        return names
