"""Who may ingest into a folder while others wait for it: real processes, one after the other."""

import subprocess
import sys

from tests.ingesting import ingest
from tests.stages.wfdb_files import write_record

WAITER = """
import sys
from pathlib import Path
from cache.claims import Claims
signals = Path(sys.argv[1])
claims = Claims(signals, signals.with_name(f".{signals.name}.ingest"))
print("opened", flush=True)
for _ in sys.stdin:
    with claims.claim(0) as ours:
        print(ours, flush=True)
        if ours:
            sys.stdin.readline()
"""


def waiter(signals):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITER, str(signals)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "opened\n"
    return process


def tries(process):
    process.stdin.write("try\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_waiting_and_a_third_process_never_both_own_the_folder(tmp_path):
    write_record(tmp_path / "data")
    signals = tmp_path / "signals.zarr"
    opened_before = []

    def progress(done, _):
        if not opened_before:
            opened_before.append(waiter(signals))
            assert tries(opened_before[0]) == "False"

    ingest("wfdb", tmp_path / "data", records_path=tmp_path / "r.parquet", signals_path=signals, progress=progress)
    third = waiter(signals)
    try:
        assert tries(opened_before[0]) == "True"
        assert tries(third) == "False"
    finally:
        for process in (opened_before[0], third):
            process.kill()
            process.communicate()


def test_a_finished_run_leaves_nothing_behind(tmp_path):
    write_record(tmp_path / "data")
    signals = tmp_path / "signals.zarr"
    ingest("wfdb", tmp_path / "data", records_path=tmp_path / "r.parquet", signals_path=signals)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad_records.csv", "data", "r.parquet", "signals.zarr"]
