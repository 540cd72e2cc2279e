"""Running `evaluate --robustness`: the fit's experts loaded, the stage run with a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.errors import UsageError
from pipeline.compute.embedding import embed_settings, is_imported
from pipeline.progress import progress
from pipeline.study.folder import Study
from stages.embed import describe, load_for
from stages.experts.run import RunSettings
from stages.learning.data import expert_identity
from stages.robustness import RobustnessPaths, RobustnessSection, RobustnessSettings, run

WHOLE = "all"
"""Name of a run that nobody names: every disturbance, unless params.yaml says otherwise."""


def judge_disturbed(study: Study, name: str | None = None, device: str | None = None) -> tuple[dict[str, Any], Path]:
    """Disturb test records of a study, and return what robustness/NAME.json says, and where it lies.

    Parameters
    ----------
    name
        Of an entry of `robustness` in params.yaml; None: `all`, by the defaults where there is no such entry.
    """
    asked = study.params.robustness
    if name is not None and name not in asked:
        raise UsageError(
            f"--name {name}: robustness in params.yaml has no such entry; it has {', '.join(asked) or 'none'}"
        )
    name = name or WHOLE
    computed = [name for name in study.fitted_experts() if not is_imported(study, name)]  # others see no new ECG
    chosen = {name: embed_settings(study, name, None, device, accept_licence=True) for name in computed}
    settings = RobustnessSettings(
        **asked.get(name, RobustnessSection()).model_dump(),
        experts={name: load_for(each) for name, each in chosen.items()},
        identities={name: expert_identity(describe(each)) for name, each in chosen.items()},
        running=next((RunSettings(threads=s.threads, batch_size=s.batch_size) for s in chosen.values()), None),
        bootstrap=study.params.evaluate.bootstrap,
        seed=study.params.seed,
    )
    answers, results = (study.robustness / f"{name}.{ending}" for ending in ("parquet", "json"))
    paths = RobustnessPaths(study.records, study.signals, study.heads, study.predictions, answers, results)
    with progress("disturbed records", "records") as update:
        return run(settings, paths, update).results, results
