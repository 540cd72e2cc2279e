"""Running `evaluate --robustness`: the fit's experts loaded, the stage run with a progress bar."""

from __future__ import annotations

from typing import Any

from pipeline.compute.embedding import embed_settings, is_imported
from pipeline.progress import progress
from pipeline.study.folder import Study
from stages.embed import describe, load_for
from stages.experts.run import RunSettings
from stages.learning.data import expert_identity
from stages.robustness import RobustnessPaths, RobustnessSettings, run


def judge_disturbed(study: Study, device: str | None = None) -> dict[str, Any]:
    """Disturb test records of a study, and return what robustness.json says."""
    computed = [name for name in study.fitted_experts() if not is_imported(study, name)]  # others see no new ECG
    chosen = {name: embed_settings(study, name, None, device, accept_licence=True) for name in computed}
    settings = RobustnessSettings(
        **study.params.robustness.model_dump(),
        experts={name: load_for(each) for name, each in chosen.items()},
        identities={name: expert_identity(describe(each)) for name, each in chosen.items()},
        running=next((RunSettings(threads=s.threads, batch_size=s.batch_size) for s in chosen.values()), None),
        bootstrap=study.params.evaluate.bootstrap,
        seed=study.params.seed,
    )
    paths = RobustnessPaths(
        study.records, study.signals, study.heads, study.predictions, study.disturbed, study.robustness
    )
    with progress("disturbed records", "records") as update:
        return run(settings, paths, update).results
