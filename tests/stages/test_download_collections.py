"""The collections that `ensemble download` knows: where each lies, under which licence, by whose digests."""

import hashlib
import json

import pytest
from typer.testing import CliRunner

from cache.errors import DownloadError, UsageError
from pipeline.cli import app
from stages.cohorts import list_cohorts
from stages.cohorts._registry import cohort_class
from stages.download import COLLECTIONS, Credentials, DownloadPaths, DownloadSettings, run
from stages.download.settings import BASE_URL
from tests.stages.test_download import names, server

__all__ = ["server"]  # a fixture

WHO = Credentials("an-owner", "a-secret-word")
ON_PHYSIONET = {
    "ptb": ("ptbdb/1.0.0", False),
    "ptbxl-plus": ("ptb-xl-plus/1.0.1", False),
    "mimic-iv-ecg-icd": ("mimic-iv-ecg-ext-icd-labels/1.0.1", True),
    "echonext": ("echonext/1.1.0", True),
}
ON_FIGSHARE = {"sph": 5779802, "chapman-csv": 4560497}


@pytest.mark.parametrize("name", ON_PHYSIONET)
def test_collections_of_physionet_come_from_their_folder(server, tmp_path, name):
    server.folder, credentialed = ON_PHYSIONET[name]
    server.password = "a-secret-word" if credentialed else None
    server.publish(RECORDS=b"a\n", table__csv=b"1\n")
    settings = DownloadSettings(name, base_url=server.url, credentials=WHO if credentialed else None)
    assert run(settings, DownloadPaths(tmp_path)).n_files == 2
    assert names(tmp_path) == ["RECORDS", "SHA256SUMS.txt", "table/csv"]
    assert COLLECTIONS[name].credentialed == credentialed
    if credentialed:
        with pytest.raises(DownloadError, match=r"HTTP 401.*PHYSIONET_USERNAME"):
            run(DownloadSettings(name, base_url=server.url), DownloadPaths(tmp_path / "out"))
        done = CliRunner().invoke(app, ["download", name, str(tmp_path / "out")], env={"PHYSIONET_USERNAME": ""})
        assert "this collection needs an account" in str(done.exception)


def figshare(server, collection, files):
    """Publish files as figshare's API does: a list of articles, a list of files of each, and the files elsewhere."""
    root = server.url.removesuffix("/files")
    answers = {f"/v2/collections/{collection}/articles?page_size=100": [{"id": 70 + k} for k in range(len(files))]}
    for k, (name, content) in enumerate(files.items()):
        entry = {"id": k, "name": name, "size": len(content), "computed_md5": hashlib.md5(content).hexdigest()}
        answers[f"/v2/articles/{70 + k}/files"] = [{**entry, "download_url": f"{root}/ndownloader/{k}"}]
        server.files[f"/ndownloader/{k}"] = content
    server.files |= {path: json.dumps(answer).encode() for path, answer in answers.items()}
    return f"{root}/v2"


@pytest.mark.parametrize("name", ON_FIGSHARE)
def test_collections_of_figshare_are_checked_by_the_digests_of_its_api(server, tmp_path, name):
    files = {"metadata.csv": b"ECG_ID\nA1\n", "records.tar.gz": b"0123456789" * 30_000}
    url = figshare(server, ON_FIGSHARE[name], files)
    server.faults = {
        "/ndownloader/1": ["drop", "wrong"],
        f"/v2/collections/{ON_FIGSHARE[name]}/articles?page_size=100": ["500"],
    }
    server.password = None
    settings = DownloadSettings(name, figshare_url=url, credentials=WHO)
    summary = run(settings, DownloadPaths(tmp_path))
    assert (summary.n_files, summary.n_bytes) == (2, sum(map(len, files.values())))
    assert names(tmp_path) == ["MD5SUMS.txt", "metadata.csv", "records.tar.gz"]
    assert (tmp_path / "records.tar.gz").read_bytes() == files["records.tar.gz"]
    assert (tmp_path / "MD5SUMS.txt").read_text().splitlines()[0].split() == [
        hashlib.md5(files["metadata.csv"]).hexdigest(),
        "metadata.csv",
    ]
    # A second run takes nothing, and finds what was changed.
    (tmp_path / "metadata.csv").write_bytes(b"other")
    assert run(settings, DownloadPaths(tmp_path)).n_present == 2
    assert run(DownloadSettings(name, figshare_url=url, verify=True), DownloadPaths(tmp_path)).n_files == 1
    assert (tmp_path / "metadata.csv").read_bytes() == files["metadata.csv"]


def test_a_password_for_physionet_never_goes_to_figshare(server, tmp_path):
    """The server would say 401 to nobody; it is asked by nobody all the same."""
    url = figshare(server, 5779802, {"code.csv": b"1\n"})
    server.password = "a-secret-word"
    with pytest.raises(DownloadError, match="HTTP 401"):
        run(DownloadSettings("sph", figshare_url=url, credentials=WHO), DownloadPaths(tmp_path))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<html>", "is no JSON"),
        (b"{}", "no list of articles"),
        (b'[{"id": "x"}]', "without 'id'"),
        (b"[]", "no file is listed"),
    ],
)
def test_other_answers_than_the_documented_ones_are_one_line(server, tmp_path, answer, says):
    url = figshare(server, 5779802, {"code.csv": b"1\n"})
    server.files["/v2/collections/5779802/articles?page_size=100"] = answer
    with pytest.raises(DownloadError, match=says) as caught:
        run(DownloadSettings("sph", figshare_url=url), DownloadPaths(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"computed_md5": ""}, "without an MD5"),
        ({"download_url": "file:///etc/passwd"}, "without an MD5 or an address by https"),
        ({"name": "../out"}, "leads out|outside|\\.\\."),
    ],
)
def test_files_that_cannot_be_checked_or_lead_out_are_refused(server, tmp_path, change, says):
    url = figshare(server, 5779802, {"code.csv": b"1\n"})
    [entry] = json.loads(server.files["/v2/articles/70/files"])
    server.files["/v2/articles/70/files"] = json.dumps([{**entry, **change}]).encode()
    with pytest.raises(Exception, match=says):
        run(DownloadSettings("sph", figshare_url=url), DownloadPaths(tmp_path / "in"))
    assert not (tmp_path / "out").exists()


def test_the_command_takes_figshares_address_from_the_environment_and_says_what_is_next(server, tmp_path):
    url = figshare(server, 5779802, {"records.tar.gz": b"1\n"})
    done = CliRunner().invoke(app, ["download", "sph", str(tmp_path)], env={"ENSEMBLE_FIGSHARE_URL": url})
    assert done.exit_code == 0, done.output
    assert "licence CC BY 4.0" in done.output
    assert "next: unpack records.tar.gz in the folder" in done.output


def test_a_wrong_address_names_the_option(tmp_path):
    with pytest.raises(UsageError, match="--figshare-url must be http"):
        run(DownloadSettings("sph", figshare_url="ftp://127.0.0.1"), DownloadPaths(tmp_path))


def test_every_collection_says_its_licence_and_belongs_to_a_source():
    of_other_names = {"mimic-iv-hosp", "mimic-iv-ecg-icd", "ptbxl-plus"}  # tables beside a source of another name
    assert set(COLLECTIONS) - of_other_names <= set(list_cohorts())
    for name in set(COLLECTIONS) - of_other_names:
        assert COLLECTIONS[name].licence.split()[0] in cohort_class(name).licence, name
    assert BASE_URL.startswith("https://")
