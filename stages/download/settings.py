"""What may be downloaded, what a download is asked for, where it goes, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

BASE_URL = "https://physionet.org/files"
FIGSHARE_URL = "https://api.figshare.com/v2"
SUMS = "SHA256SUMS.txt"
MD5_SUMS = "MD5SUMS.txt"


@dataclass(frozen=True)
class Collection:
    """One published collection.

    Attributes
    ----------
    folder
        On PhysioNet, with the version; empty where the collection lies elsewhere.
    only
        Beginnings of the paths that are taken; all where empty.
    credentialed
        Whether the server asks who it is.
    list_file
        Where the list of digests is kept, within the folder.
    figshare
        The collection's number there, if it lies on figshare.
    then
        What is left to do with the files.
    """

    folder: str
    title: str
    licence: str
    only: tuple[str, ...] = ()
    credentialed: bool = False
    list_file: str = SUMS
    figshare: int | None = None
    then: str = ""


_PHYSIONET_CREDENTIALED = "PhysioNet Credentialed Health Data License 1.5.0"
COLLECTIONS = {
    "ptbxl": Collection("ptb-xl/1.0.3", "PTB-XL", "CC BY 4.0"),
    "mimic-iv-ecg": Collection("mimic-iv-ecg/1.0", "MIMIC-IV-ECG", "ODbL 1.0"),
    "mimic-iv-hosp": Collection(
        "mimiciv/3.1",
        "MIMIC-IV: patients, labevents, admissions: age, gender, flag and mortality of MIMIC-IV-ECG",
        _PHYSIONET_CREDENTIALED,
        only=("hosp/patients.csv.gz", "hosp/labevents.csv.gz", "hosp/admissions.csv.gz"),
        credentialed=True,
        list_file=f"hosp/{SUMS}",  # its folder is that of MIMIC-IV-ECG, which has a list of its own
    ),
    "ludb": Collection("ludb/1.0.1", "LUDB", "ODC-By 1.0"),
    "chapman": Collection("ecg-arrhythmia/1.0.0", "Chapman/Ningbo", "CC BY 4.0"),
    "challenge": Collection("challenge-2021/1.0.3", "PhysioNet/CinC Challenge 2021", "CC BY 4.0", only=("training/",)),
    "ptb": Collection("ptbdb/1.0.0", "PTB Diagnostic ECG Database", "ODC-By 1.0"),
    "ptbxl-plus": Collection("ptb-xl-plus/1.0.1", "PTB-XL+: features of PTB-XL (option plus)", "CC BY 4.0"),
    "mimic-iv-ecg-icd": Collection(
        "mimic-iv-ecg-ext-icd-labels/1.0.1",
        "MIMIC-IV-ECG-Ext-ICD: diagnoses of MIMIC-IV-ECG (option icd)",
        _PHYSIONET_CREDENTIALED,
        credentialed=True,
    ),
    "echonext": Collection(
        "echonext/1.1.0", "EchoNext", "PhysioNet Restricted Health Data License 1.5.0", credentialed=True
    ),
    "sph": Collection(
        "",
        "SPH: Shandong Provincial Hospital",
        "CC BY 4.0",
        list_file=MD5_SUMS,
        figshare=5779802,
        then="unpack records.tar.gz in the folder",
    ),
    "chapman-csv": Collection(
        "",
        "Chapman/Shaoxing, first edition as CSV",
        "CC0 1.0",
        list_file=MD5_SUMS,
        figshare=4560497,
        then="unzip ECGData.zip or ECGDataDenoised.zip in the folder",
    ),
}


@dataclass(frozen=True)
class Credentials:
    """Who asks. Never shown: not by repr, and nothing here writes or logs it."""

    username: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True)
class DownloadSettings:
    """Which files of a collection are taken, and from whom.

    Attributes
    ----------
    collection
        One of `COLLECTIONS`.
    only
        Beginnings of paths within the collection; only these files (instead of the collection's own choice).
    base_url
        PhysioNet, or a mirror with its layout.
    figshare_url
        figshare's API, for collections that lie there.
    workers
        Files at a time.
    verify
        Also read the files that are there, and take those anew whose digest is not the published one.

    Examples
    --------
    >>> DownloadSettings("ludb", only=("data/1",)).workers
    4
    """

    collection: str
    only: tuple[str, ...] = ()
    base_url: str = BASE_URL
    workers: int = 4
    verify: bool = False
    credentials: Credentials | None = None
    figshare_url: str = FIGSHARE_URL


@dataclass(frozen=True)
class DownloadPaths:
    """The folder that the files go into."""

    folder: Path


@dataclass(frozen=True)
class DownloadSummary:
    """What came of it: files taken, files that were there already, bytes taken."""

    n_files: int
    n_present: int
    n_bytes: int
