"""Any mix of ECG files as carts and archives write them: found by their content, with labels from a table.

A record is named by the file's own test id where its format has one, else by its path. Patients are those of the table,
else those of the files.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from cache.errors import InputError, MissingFileError
from cache.records import Target
from stages.cohorts._registry import register
from stages.cohorts.contract import Cohort, Entries
from stages.cohorts.labels.cart_columns import add_cart_columns
from stages.cohorts.labels.files_join import FileLabelOptions, Listed, add_file_labels
from stages.readers import Counts, Recording, read_wfdb
from stages.readers.files import Facts, check_installed, facts_of, known_format, read_file, what_is_read
from stages.readers.formats.dicom import FORMAT as DICOM
from stages.readers.formats.dicom import holds_waveform
from stages.readers.paths import inside
from stages.readers.record_search import HEADER, files_below, find_records

N_NAMED = 3
MANY = 10


class FilesOptions(FileLabelOptions):
    """The label options of the source `wfdb`, and what is taken of the files themselves.

    Attributes
    ----------
    measurements
        Make label columns of what the carts measured (`cart_pr_ms` ...), of their statements and filters.
    only
        Paths of files within the folder; None: all.
    """

    measurements: bool = False
    only: list[str] | None = None


@dataclass
class _Found:
    """Files of a folder by kind."""

    known: dict[str, str]
    """Path -> name of the format."""
    formats: set[str]
    others: list[str]
    n_without_waveform: int = 0


@register("files")
class Files(Cohort):
    """A folder of ECG files of any format, searched with everything below it."""

    title = "ECG files (MUSE, CardioSoft, Philips and Mortara XML, DICOM, SCP-ECG, aECG, EDF, ISHNE, MFER, WFDB)"
    options_type = FilesOptions
    options: FilesOptions
    holds = ()

    def entries(self) -> Entries:
        """List the files in order of their paths, read what they say of themselves, and join the labels."""
        notes: list[str] = []
        only = self.options.only
        headers = [path for path in find_records(self.data, notes) if only is None or f"{path}{HEADER}" in only]
        # The samples of a WFDB record are no files of their own.
        samples = {f"{path}{end}" for path in headers for end in (".dat", ".mat", ".xyz")}
        files = files_below(self.data, notes) if only is None else only
        found = self._sniffed([path for path in files if path not in samples])
        paths = sorted([*headers, *found.known])
        if not paths:
            raise MissingFileError(self._nothing(found))
        facts = {path: self._facts(path) if path in found.known else Facts() for path in paths}
        notes += _counted(found, len(headers))
        frame = _named(paths, facts, notes)
        listed = Listed(paths, frame["record_id"].tolist(), [facts[path] for path in paths])
        targets: list[Target] = add_file_labels(frame, listed, self.folder, self.options, notes)
        if self.options.measurements:
            targets += add_cart_columns(frame, listed.facts, {t.name for t in targets}, notes)
        return Entries(frame, targets, notes)

    def _sniffed(self, paths: list[str]) -> _Found:
        found = _Found({}, set(), [])
        for path in paths:
            if path.endswith(HEADER):
                continue
            try:
                kind = known_format(self.data, path)
                if kind is not None and kind.name not in found.formats:
                    check_installed({kind.name})
                    found.formats.add(kind.name)
                if kind is DICOM and not holds_waveform(inside(self.data, path)):
                    found.n_without_waveform += 1
                elif kind is not None:
                    found.known[path] = kind.name
                else:
                    found.others.append(path)
            except InputError:
                found.known[path] = "unreadable"
        return found

    def _facts(self, path: str) -> Facts:
        """Read what a file says of itself; of a damaged one nothing: it is bad when it is read."""
        try:
            return facts_of(self.data, path)
        except InputError:
            return Facts()

    def _nothing(self, found: _Found) -> str:
        seen = f"{len(found.others)} files are there, such as {found.others[0]}" if found.others else "it holds no file"
        return f"{self.folder}: none of its files is an ECG ({seen}); these formats are read: {what_is_read()}"

    def read(self, path: str) -> Recording | Counts:
        """Read one file of whatever format; a path without a file is that of a WFDB header."""
        if (self.folder / f"{path}{HEADER}").is_file() and not (self.folder / path).is_file():
            return read_wfdb(self.data, path, self.seconds, self.lead_names)
        return read_file(self.data, path, self.seconds, self.lead_names)


def _named(paths: list[str], facts: dict[str, Facts], notes: list[str]) -> pd.DataFrame:
    """Name the records and their patients."""
    ids = [facts[path].test_id or path for path in paths]
    patients = [facts[path].patient_id for path in paths]
    n_unknown = patients.count(None)
    if n_unknown < len(paths):
        notes.append(f"patients: those that {len(paths) - n_unknown} of {len(paths)} files name")
    if len(paths) >= MANY and not n_unknown and len(set(patients)) == 1:
        notes.append(
            "all files name the same patient, as anonymised exports do; name the patients in a table of labels"
        )
    return pd.DataFrame({"record_id": ids, "patient_id": pd.Series(patients, dtype=object), "path": paths})


def _counted(found: _Found, n_headers: int) -> list[str]:
    """Say how many files of each format there are, and how many of none."""
    counts = pd.Series(list(found.known.values()), dtype=object).value_counts()
    shown = [f"{n} {name}" for name, n in sorted(counts.items())] + ([f"{n_headers} WFDB"] if n_headers else [])
    notes = [f"files: {', '.join(shown)}"]
    if found.others:
        named = ", ".join(found.others[:N_NAMED])
        notes.append(f"{len(found.others)} files are of none of the formats and left out (such as {named})")
    if found.n_without_waveform:
        notes.append(f"{found.n_without_waveform} DICOM files hold no waveform and are left out")
    return notes
