"""An ECG on paper: true to scale, nothing hidden."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

import ensemble as public
from cache.errors import InputError, UsageError
from cache.signals import LEADS
from stages.plots import LAYOUTS, Shade, plot_ecg, save_picture
from tests.stages.wfdb_files import write_record

SVG = "{http://www.w3.org/2000/svg}"
RATE_HZ = 500


def ecg_mv() -> np.ndarray:
    """A square of 1 mV from 1.0 to 1.2 s, and one at every later 2.5 s, in all leads."""
    signals = np.zeros((12, 10 * RATE_HZ))
    for start in (1.0, 3.5, 6.0, 8.5):
        signals[:, int(start * RATE_HZ) : int((start + 0.2) * RATE_HZ)] = 1.0
    return signals


def saved(tmp_path, *arguments, **options):
    path = save_picture(plot_ecg(*arguments, **options), tmp_path / "ecg.svg")
    return Measured(path.read_text())


class Measured:
    """An SVG with a ruler: positions of named marks in mm, from its own width and view box."""

    def __init__(self, text):
        self.text, root = text, ElementTree.fromstring(text)
        points = {"pt": 25.4 / 72}[re.sub(r"[\d.]", "", root.get("width"))]
        width, view = float(root.get("width").removesuffix("pt")), root.get("viewBox").split()
        self.scale = width * points / float(view[2])
        self.groups = {group.get("id"): group for group in root.iter(f"{SVG}g") if group.get("id")}

    def path_mm(self, name):
        drawn = self.groups[name].find(f"{SVG}path").get("d")
        return self.scale * np.array(re.findall(r"[ML] (\S+) (\S+)", drawn), dtype=float)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_second_is_25_mm_and_a_millivolt_10_mm(tmp_path, layout):
    drawn = saved(tmp_path, ecg_mv(), RATE_HZ, layout=layout)
    pulse = drawn.path_mm("calibration-0")
    assert np.ptp(pulse[:, 1]) == pytest.approx(10, abs=1e-3)
    assert pulse[3, 0] - pulse[2, 0] == pytest.approx(5, abs=1e-3)  # 200 ms
    for lead in LEADS:
        trace = drawn.path_mm(f"lead-{lead}")
        assert np.ptp(trace[:, 1]) == pytest.approx(10, abs=0.01), lead
        seconds = max(strip.seconds for strip in LAYOUTS[layout].strips if strip.lead == lead and not strip.rhythm)
        assert np.ptp(trace[:, 0]) == pytest.approx(25 * seconds, abs=0.06), lead
        high = trace[trace[:, 1] < trace[:, 1].min() + 0.01, 0]
        assert high[1] - high[0] == pytest.approx(5, abs=0.11), lead
    grid = self_distances(drawn, "grid-5mm")
    assert grid == pytest.approx(5, abs=1e-3)
    assert self_distances(drawn, "grid-1mm") == pytest.approx(1, abs=1e-3)


def self_distances(drawn, name):
    lines = [line.get("d") for line in drawn.groups[name].findall(f"{SVG}path")]
    across = sorted({float(re.match(r"M (\S+)", line)[1]) for line in lines})
    return np.diff(across)[0] * drawn.scale


def test_the_columns_of_3x4_follow_one_another_in_time(tmp_path):
    signals = np.repeat(np.linspace(0, 1, 5000)[None], 12, axis=0)  # the height tells the second
    drawn = saved(tmp_path, signals, RATE_HZ)
    starts = {lead: drawn.path_mm(f"lead-{lead}") for lead in ("I", "aVR", "V1", "V4")}
    heights = [starts["I"][0, 1] - trace[0, 1] for trace in starts.values()]
    assert heights == pytest.approx([0, 2.5, 5, 7.5], abs=0.05)
    assert np.ptp(drawn.path_mm("rhythm-II")[:, 0]) == pytest.approx(250, abs=0.06)


def test_missing_leads_gaps_and_the_end_of_a_record_are_seen(tmp_path):
    signals = ecg_mv()[:, : 8 * RATE_HZ]
    signals[LEADS.index("V3")] = np.nan
    signals[LEADS.index("II"), 600:700] = np.nan
    drawn = saved(tmp_path, signals, RATE_HZ, layout="12x1", notes=["limb leads look exchanged: RA/LA"])
    assert "missing-lead-V3" in drawn.groups
    assert "lead-V3" not in drawn.groups
    gap = drawn.path_mm("gap-lead-II-0")
    assert np.ptp(gap[:, 0]) == pytest.approx(5, abs=0.01)
    end = drawn.path_mm("gap-lead-V1-0")
    assert np.ptp(end[:, 0]) == pytest.approx(50, abs=0.06)
    assert "limb leads look exchanged: RA/LA" in drawn.text
    assert "V3: no samples" in drawn.text


def test_a_peak_beyond_the_grid_ends_at_its_edge_with_a_mark(tmp_path):
    """V1 of 3x4 lies in the topmost row: 4 mV would leave the sheet."""
    signals = ecg_mv()
    signals[LEADS.index("V1"), int(5.2 * RATE_HZ) : int(5.3 * RATE_HZ)] = 4.0
    signals[LEADS.index("II"), int(8.0 * RATE_HZ) : int(8.1 * RATE_HZ)] = -9.0
    drawn = saved(tmp_path, signals, RATE_HZ)
    assert {name for name in drawn.groups if name.startswith("beyond-")} == {
        "beyond-above-lead-V1-0",
        "beyond-below-rhythm-II-0",
    }
    grid = drawn.path_mm("grid-5mm")[:, 1]
    trace = drawn.path_mm("lead-V1")[:, 1]
    assert trace.min() >= grid.min() - 0.3
    assert np.ptp(trace) < 40
    plain = saved(tmp_path, ecg_mv(), RATE_HZ)
    assert not [name for name in plain.groups if name.startswith("beyond-")]


def test_a_shade_lies_on_its_lead_and_its_seconds(tmp_path):
    drawn = saved(tmp_path, ecg_mv(), RATE_HZ, layout="12x1", shades=[Shade("V2", 6.0, 6.2, 1.0)])
    shaded, trace = drawn.path_mm("shade-V2"), drawn.path_mm("lead-V2")
    assert shaded[:, 0].min() == pytest.approx(trace[0, 0] + 150, abs=0.01)
    assert np.ptp(shaded[:, 0]) == pytest.approx(5, abs=0.01)
    assert shaded[:, 1].min() < trace[0, 1] < shaded[:, 1].max()


def test_equal_ecgs_give_equal_bytes_in_every_format(tmp_path):
    for kind in ("svg", "png", "pdf"):
        first, second = (
            save_picture(plot_ecg(ecg_mv(), RATE_HZ), tmp_path / f"{k}.{kind}").read_bytes() for k in range(2)
        )
        assert first == second


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "4x3"}, "--layout 4x3.*3x4, 6x2, 12x1"),
        ({"rhythm": "V7"}, "--rhythm V7.*aVF"),
        ({"start_s": 11}, "--start 11: the record has 10.0 s"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_choices(options, words):
    with pytest.raises(UsageError, match=words):
        plot_ecg(ecg_mv(), RATE_HZ, **options)


def test_signals_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"\(3, 5000\)"):
        plot_ecg(np.zeros((3, 5000)), RATE_HZ)


def test_without_matplotlib_one_line_names_the_extra():
    code = (
        "import sys, importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'matplotlib' else real(name, *a)\n"
        "sys.argv = ['ensemble', 'show', 'x.hea']\n"
        "from pipeline.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "ecg-ensemble[plots]" in done.stderr


def test_a_file_and_a_record_of_the_study_are_drawn(tmp_path, make_cohort, ensemble, monkeypatch):
    make_cohort(tmp_path, 8)
    monkeypatch.chdir(tmp_path)
    from cache.records import open_records

    record = open_records()["record_id"][2]
    assert ensemble("show", record, "--out", "a.svg").returncode == 0
    assert record in (tmp_path / "a.svg").read_text()
    write_record(tmp_path, "new", np.zeros((5000, 2)), leads=("I", "II"))
    done = ensemble("show", "new.hea", "--layout", "6x2")
    assert (done.returncode, done.stdout) == (0, "new.svg\n")
    assert "flat leads: I, II" in (tmp_path / "new.svg").read_text()
    lost = ensemble("show", "nobody")
    assert lost.returncode == 1
    assert "records.parquet has no record of this id" in lost.stderr
    assert ensemble("show", record, "--out", "a.gif").returncode == 2


def test_the_public_face_draws_arrays_and_files(tmp_path):
    figure = public.plot_ecg(ecg_mv(), RATE_HZ, out=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_figwidth() * 25.4 == pytest.approx(270)
    with pytest.raises(UsageError, match="sampling rate"):
        public.plot_ecg(ecg_mv())
