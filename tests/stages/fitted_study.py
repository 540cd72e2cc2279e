"""A small ingested, embedded and fitted study on disk: experts seed and morphology, two tasks, evaluated."""

from pathlib import Path

import pytest

PARAMS = """
cohort: {source: wfdb, path: .}
experts: {seed: {}, morphology: {}}
machine: {device: cpu}
fit_heads: {folds: split, options: {gate_epochs: 5, lora_epochs: 3}}
evaluate: {bootstrap: 100}
maps: {gate: {records: all, method: pca}}
"""


def write_fitted(folder: Path, make_cohort, n_records: int = 60) -> Path:
    """Write the study; needs seconds."""
    import sys

    from pipeline import cli

    make_cohort(folder, n_records)
    (folder / "params.yaml").write_text(PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in ("embed --expert seed", "embed --expert morphology", "fit-heads", "evaluate"):
            patch.setattr(sys, "argv", ["ensemble", *words.split()])
            try:
                cli.main()
            except SystemExit as stop:
                assert not stop.code, words  # noqa: PT017
    return folder
