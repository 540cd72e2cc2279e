"""Cohorts of other packages: installed, listed and read; and broken ones, which stop nothing."""

import subprocess
import sys

import pytest

GOOD = """
import pandas as pd
from stages.cohorts import Cohort, Entries, register

@register("clinic")
class Clinic(Cohort):
    title = "the clinic's"
    holds = ("ptbxl",)

    def entries(self):
        return Entries(pd.DataFrame({"record_id": ["a"], "patient_id": [None], "path": ["a"]}), [])
"""
BROKEN = {
    "cannot be imported": "raise RuntimeError('no such\\nlibrary')",
    "lacks a library": "import a_library_that_is_not_there",
    "takes a built-in name": GOOD.replace('"clinic"', '"ptbxl"'),
    "ends the process": "raise SystemExit(3)",
}
LIST = "from stages.cohorts import list_cohorts; print(list_cohorts())"


@pytest.fixture
def python(tmp_path, monkeypatch):
    site = tmp_path / "site"
    monkeypatch.setenv("PYTHONPATH", f"{site}:.")

    def install(package, source):
        """Lay a package out as pip does."""
        about = site / f"{package}-1.dist-info"
        about.mkdir(parents=True)
        (site / f"{package}.py").write_text(source)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[ensemble.cohorts]\n{package} = {package}\n")

    def run(code):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    run.install = install
    return run


def test_a_cohort_of_another_package_is_listed_and_overlaps_as_its_file_says(python):
    python.install("clinic_ecgs", GOOD)
    done = python(
        "from stages.cohorts import list_cohorts, open_cohort, shared_collections as shared\n"
        "print('clinic' in list_cohorts(), type(open_cohort('clinic', '.')).__name__)\n"
        "print(shared('clinic', ['challenge2021', 'chapman', 'ptbxl', 'code']))"
    )
    assert done.stdout == "True Clinic\n['challenge2021', 'ptbxl']\n", done.stderr


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "cannot be imported")) for k in BROKEN]
)
def test_a_broken_package_is_named_in_one_line_and_stops_no_other_source(python, kind):
    python.install("broken_ecgs", BROKEN[kind])
    python.install("clinic_ecgs", GOOD)
    done = python(LIST)
    assert done.returncode == 0, done.stderr
    assert "'clinic'" in done.stdout
    assert "'ptbxl'" in done.stdout
    warned = [line for line in done.stderr.splitlines() if "broken_ecgs" in line]
    assert len(warned) == 1
    assert "update or uninstall that package" in warned[0]
    module = python("from stages.cohorts._registry import cohort_class; print(cohort_class('ptbxl').__module__)")
    assert (module.stdout, module.stderr) == ("stages.cohorts.ptbxl\n", "")  # nothing else is imported for it
