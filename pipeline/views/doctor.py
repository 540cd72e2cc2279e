"""What `ensemble doctor` looks at. Each finding is one line: the verdict, what was looked at, and the fix."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from cache.errors import EnsembleError, MissingFileError
from pipeline.study.folder import Study

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
LOW_DISK_GIB = 10
HUB_TIMEOUT_S = 5


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    verdict: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}  {self.what}" + (f" -> {self.fix}" if self.fix else "")


def examine(*, offline: bool) -> Iterator[Finding]:
    """Look at Python, packages, device, disk, DVC, this study and its experts' weights."""
    yield Finding(PASS, f"Python {sys.version.split()[0]}")
    yield from _packages()
    yield _device()
    yield _disk()
    yield _dvc()
    yield from _study()
    yield Finding(PASS, "the model hub was not asked (--offline)") if offline else _hub()


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    wrong = []
    for line in requires("ecg-ensemble") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    if not wrong:
        yield Finding(PASS, "packages are those that ecg-ensemble asks for")
    for line in wrong:
        yield Finding(FAIL, line, "pip install --upgrade ecg-ensemble")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return Finding(
            PASS, f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA device(s): {', '.join(names)}"
        )
    if shutil.which("nvidia-smi"):
        return Finding(WARN, f"torch {torch.__version__} sees no CUDA device", "install a CUDA build of torch")
    return Finding(PASS, f"torch {torch.__version__} on the CPU ({torch.get_num_threads()} threads)")


def _disk() -> Finding:
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    if free_gib < LOW_DISK_GIB:
        return Finding(
            WARN, f"{free_gib:.1f} GiB free here", "an ECG takes 0.06 MB, its vectors about 0.02 MB an expert"
        )
    return Finding(PASS, f"{free_gib:.0f} GiB free here")


def _dvc() -> Finding:
    done = subprocess.run([sys.executable, "-m", "dvc", "root"], capture_output=True, text=True, check=False)
    if done.returncode:
        return Finding(WARN, "this folder is no DVC project", "ensemble init FOLDER, or dvc init")
    return Finding(PASS, f"DVC {version('dvc')}")


def _study() -> Iterator[Finding]:

    study = Study()
    try:
        params = study.params
    except MissingFileError as error:
        yield Finding(WARN, str(error))
        return
    except EnsembleError as error:
        yield Finding(FAIL, str(error), "correct params.yaml")
        return
    sources = study.source_folders()
    kinds = f"{'cohort' if len(sources) == 1 else 'cohorts'} {', '.join(sources)}"
    yield Finding(PASS, f"params.yaml: {len(params.experts)} experts, {kinds}")
    for name, (_, folder) in sources.items():
        if folder.is_dir():
            yield Finding(PASS, f"records folder {folder}")
        else:
            yield Finding(WARN, f"records folder {folder} of {name} is not there", "set its path in params.yaml")
    yield from stage_findings()
    yield from _storage(study)
    for name in params.experts:
        yield from _expert(study, name)


def stage_findings() -> Iterator[Finding]:
    """Say whether `dvc repro` finds in params.yaml what dvc.yaml names."""
    from pipeline.study.upgrade import what_dvc_misses

    try:
        missing = what_dvc_misses(Path())
    except EnsembleError as error:
        yield Finding(FAIL, str(error), "correct dvc.yaml")
        return
    if missing:
        yield Finding(FAIL, f"dvc.yaml names {', '.join(missing)}, which params.yaml lacks", "ensemble upgrade")


def _storage(study: Study) -> Iterator[Finding]:
    from cache.storage.objects import ObjectPath

    for what in (study.records, study.signals, study.embeddings):
        if not isinstance(what, ObjectPath):
            continue
        try:
            what.children()
        except EnsembleError as error:
            yield Finding(FAIL, str(error))
        else:
            yield Finding(PASS, f"{what} answers")


def _expert(study: Study, name: str) -> Iterator[Finding]:
    """Look at one expert of params.yaml: whether it exists, its weights are here and load, its licence is accepted."""
    from pipeline.compute.embedding import is_imported
    from pipeline.views.catalogue import TO_FETCH, TO_GIVE, spec_of, weights_state

    try:
        if is_imported(study, name):
            yield Finding(PASS, f"expert {name}: imported, its store is whole and of these records")
            return
        spec = spec_of(name)
        state = weights_state(spec)
    except EnsembleError as error:
        yield Finding(FAIL, str(error))
        return
    fix = {TO_FETCH: f"ensemble weights fetch {name}", TO_GIVE: f"set experts.{name}.weights in params.yaml"}
    if state.startswith("missing"):
        yield Finding(FAIL, f"expert {name}: weights {state}", "put the file there, or correct params.yaml")
    elif state in fix:
        yield Finding(WARN, f"expert {name}: weights {state}", fix[state])
    else:
        yield _loaded(study, name, state)
    if spec.non_commercial and not study.expert_params(name).accept_licence:
        yield Finding(
            WARN,
            f"expert {name}: licence {spec.licence}, not accepted",
            f"if your use allows it, experts.{name}.accept_licence: true",
        )


def _loaded(study: Study, name: str, state: str) -> Finding:
    """Load the expert as `embed` would, on the CPU: weights that are here may still not fit."""
    from stages.experts import load_expert

    params = study.expert_params(name)
    try:
        load_expert(name, study.weights_of(name), params.config or None, preprocessing=params.preprocessing)
    except EnsembleError as error:
        return Finding(FAIL, str(error))
    return Finding(PASS, f"expert {name}: weights {state}" + ("" if state == "none needed" else ", and load"))


def _hub() -> Finding:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT_S):
            pass
    except HTTPError:
        pass  # an answer, if not to a question that it likes
    except (OSError, ValueError) as error:
        return Finding(
            WARN,
            f"the model hub {constants.ENDPOINT} does not answer ({error})",
            "set HF_ENDPOINT to a mirror, or give weights as files",
        )
    return Finding(PASS, f"the model hub {constants.ENDPOINT} answers")
