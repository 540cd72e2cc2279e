"""report.html as a reader sees it: laid out by a real browser, checked for overflow."""

import pytest

from cache.records import Target, write_records
from stages.scoring.predictions import open_predictions
from stages.scoring.summary import summarise, write_metrics
from tests import browser
from tests.stages import synthetic_predictions
from tests.stages.test_report import report

SECOND = "_in_the_emergency_room"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of eight tasks with ten headline columns: each of the four synthetic tasks twice."""
    folder = tmp_path_factory.mktemp("eight")
    with pytest.MonkeyPatch.context() as patch:
        once, truths, records = (
            synthetic_predictions.TARGETS,
            synthetic_predictions.truths,
            synthetic_predictions._records,
        )
        twice = {
            name + suffix: Target(name + suffix, target.kind, target.unit, target.classes)
            for suffix in ("", SECOND)
            for name, target in once.items()
        }

        def truths_twice(rng, n):
            return {name + suffix: y for suffix in ("", SECOND) for name, y in truths(rng, n).items()}

        def records_twice(*arguments):
            frame = records(*arguments)
            frame = frame.assign(**{name + SECOND: frame[name] for name in once})
            frame.attrs["targets"] = twice
            return frame

        patch.setattr(synthetic_predictions, "TARGETS", twice)
        patch.setattr(synthetic_predictions, "truths", truths_twice)
        patch.setattr(synthetic_predictions, "_records", records_twice)
        frame = synthetic_predictions.write_study(folder, n=120)
    write_records(folder / "records.parquet", frame, list(twice.values()))
    found = summarise(open_predictions(folder / "predictions.parquet"), frame, n_resamples=20)
    write_metrics(folder / "metrics.json", found, folder / "predictions.parquet")
    return report(folder, folder / "out" / "report.html").read_text(encoding="utf-8")


SHOWN = "[...page.querySelectorAll('.headline td:not(.none) .value')].every(e => e.getBoundingClientRect().width > 0)"


@pytest.fixture(scope="module")
def found(page, tmp_path_factory):
    """What a screen, a phone and A4 paper with margins of 10 mm (718 pixels; on its side 1,046) make of the page."""
    printed = browser.as_printed(page)
    upright = printed.replace('<section id="results">', '<section style="display: none">')
    views = {
        "screen": browser.View(page, 1280, scrolling=False),
        "phone": browser.View(page, 390, script=SHOWN),
        "across": browser.View(printed, 1046, scrolling=False),
        "upright": browser.View(upright, 718, scrolling=False),
    }
    return dict(zip(views, browser.measured(tmp_path_factory.mktemp("browser"), list(views.values())), strict=True))


def test_eight_tasks_fit_1280_pixels_without_scrolling(found):
    assert found["screen"]["scroll"] <= 1280
    assert not found["screen"]["wide"]
    assert not found["screen"]["scrolled"]


def test_a_phone_shows_every_value_without_scrolling_the_page(found):
    assert found["phone"]["scroll"] <= 390
    assert not found["phone"]["wide"]
    assert found["phone"]["answer"] is True
    assert not [table for table in found["phone"]["scrolled"] if table.startswith("headline")]


def test_print_cuts_nothing(found):
    """The results lie on a page on its side."""
    assert not found["across"]["wide"]
    assert not found["upright"]["wide"]
