"""A run of `predict` into files in a process of its own, so that it can be killed: `predict_files.py FIT STUDY OUT`."""

import os
import sys
from pathlib import Path

from pipeline.compute.embedding import embed_settings
from pipeline.compute.prediction import PredictWork, run_predict
from pipeline.study.folder import Study
from stages.predict import PredictPaths, StudyStores

AT_ONCE, PER_PART = 2, 4


def work_of(fit: Path, records: Path, out: Path) -> PredictWork:
    """Parts of four records of a study whose experts have to run, or of a folder of files."""
    os.chdir(fit)
    stores = None
    if (records / "records.parquet").is_file():
        stores = StudyStores(records / "records.parquet", records / "signals.zarr", {})
    paths = PredictPaths(Path("heads"), () if stores else (records,), stores, out)
    return PredictWork({"ecgfm": embed_settings(Study(), "ecgfm")}, paths, False, AT_ONCE, PER_PART)


if __name__ == "__main__":
    fit, records, out = map(Path, sys.argv[1:])
    print(run_predict(work_of(fit, records, out), workers=1, notes=[]).n_computed)
