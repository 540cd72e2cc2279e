"""The report of many records stays small enough to send; its benchmark says how long it takes."""

import pytest

from benchmarks.report import write, written

MOST_BYTES = 5_000_000


@pytest.mark.slow
def test_a_report_of_3000_records_with_pictures_has_at_most_five_megabytes(tmp_path):
    write(tmp_path, 3000)
    assert written(tmp_path, cases=3) <= MOST_BYTES
    assert (tmp_path / "report.html").read_text("utf-8").count('<svg class="ecg"') >= 4 * 3 * 3
    assert written(tmp_path, cases=20) <= MOST_BYTES
