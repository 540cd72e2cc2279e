"""Whatever a WFDB header says, it is read or refused."""

import contextlib
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import InputError
from stages.readers import read_wfdb
from stages.readers.wfdb.header import parse_header
from tests.stages.wfdb_samples import as_millivolts, row_of

LINES = st.sampled_from(
    [
        "a 12 500 5000",
        "a.dat 16 200(0)/mV 16 0 0 0 0 I",
        "a.dat 16",
        "a.dat 212x2:3+4 200(0)/mV 12 0 0 7 0 II",
        "a.dat 516",
        "#Age: NaN",
        "a/2 1 500 10",
        "a 1 1e9 99999999999",
        "a 512 20000 999999999999999",
        "a 1",
        "a 2 500",
        "a/2 1 500",
        "~ 212 200 12 0 0 0 0 I",
        "pipe 16 200 16 0 0 0 0 I",
        "pipe 212 200 12 0 0 0 0 I",
        "a.hea 8 200 8 0 0 0 0 I",
    ]
)


JUNK = st.text(alphabet=st.sampled_from(list("a1 0.-+/()x:#e~\n\t\\µ\0")), max_size=60)


FIRST = st.sampled_from(["a/2 1 500", "a/2 2 500 10 10:30 1-May-2020", "a 1 500", "a 2 500 5"])


SEGMENTS = st.sampled_from(["b 5", "~ 5", "pipe 5", "c 5", "b 0", "b 999999999999999"])


HEADERS = (
    st.lists(LINES | JUNK, max_size=15)
    | st.builds(lambda first, rest: [first, *rest], FIRST, st.lists(LINES, max_size=3))
    | st.builds(lambda first, rest: [first, *rest], FIRST, st.lists(SEGMENTS, min_size=2, max_size=3))
).map("\n".join)


@settings(max_examples=300, deadline=None)
@given(HEADERS, HEADERS | st.just("b 1 500 5\na.dat 16 200(0)/mV 16 0 0 0 0 I"))
def test_any_header_is_read_or_refused(tmp_path_factory, text, segment):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    if not folder.exists():
        folder.mkdir()
        for name in ("pipe", "pipe.hea", "c.dat"):
            os.mkfifo(folder / name)
        (folder / "c.hea").write_text("c 1 500 5\nc.dat 16 200(0)/mV 16 0 0 0 0 I")
    (folder / "a.hea").write_bytes(text.encode())
    (folder / "b.hea").write_bytes(segment.encode())
    (folder / "a.dat").write_bytes(bytes(range(250)))
    with contextlib.suppress(InputError):
        recording = read_wfdb(folder, "a")
        assert as_millivolts(recording).signals_mv.size <= 10_000
        row_of(recording)


def test_the_short_way_through_a_signal_line_gives_what_the_long_one_gives():
    lines = [
        "a.dat 16x1+24 1000.0(0)/mv 16 0 -5 25645 0 aVR",
        "a.dat 16 807(1)/mV 0 0 -47 7211 0 lead i",
        "a.dat 212 200 11 1024 995 -22131 0 MLII",
    ]
    signals = parse_header("\n".join(["a 3 500 10", *lines]).encode()).signals
    assert [(s.gain, s.baseline, s.offset, s.initial, s.checksum, s.lead) for s in signals] == [
        (1000.0, 0, 24, -5, 25645, "aVR"),
        (807.0, 1, 0, -47, 7211, "lead i"),
        (200.0, 1024, 0, 995, -22131, "MLII"),
    ]
