"""The map: places, colours, bytes, and what a hand and a keyboard do to it in a real browser."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cache import open_embeddings, open_records
from cache.errors import InputError, UsageError
from stages.ecg_map import MapPaths, MapSettings, run
from stages.ecg_map import plane as plane_module
from stages.ecg_map.colours import MISSING, OTHER, of_classes, of_shares, of_values
from stages.ecg_map.page import render
from stages.ecg_map.plane import plane
from stages.plots.strokes import GAP, packed_strokes
from stages.scoring.gate_weights import open_gate_weights
from stages.scoring.predictions import open_predictions
from stages.spaces import SpacePaths
from tests import browser
from tests.stages.fitted_study import write_fitted


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_cohort):
    return write_fitted(tmp_path_factory.mktemp("map"), make_cohort)


def drawn(study, out, expert=None, **options):
    names = [expert] if expert else ["seed", "morphology"]
    stores = {name: study / "embeddings" / f"{name}.zarr" for name in names}
    paths = MapPaths(
        study / "records.parquet",
        SpacePaths(stores, None if expert else study / "heads", study / "signals.zarr"),
        out / "map.html",
        out / "map.parquet",
        study / "signals.zarr",
        study / "predictions.parquet",
        study / "gate_weights.parquet",
    )
    settings = MapSettings(expert=expert, **{"records": "all", "method": "pca", **options})
    return run(settings, paths), (out / "map.html").read_text(encoding="utf-8"), pd.read_parquet(out / "map.parquet")


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


# ---- places ----------------------------------------------------------------------------------------------------------


def test_two_clouds_stay_apart_and_equal_calls_give_equal_places():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 12)).astype(np.float32)
    vectors[:30] += 8
    xy, method, notes = plane(vectors, "pca", seed=1)
    assert (method, notes) == ("PCA", [])
    np.testing.assert_array_equal(xy, plane(vectors, "pca", seed=1)[0])
    assert xy[:30, 0].min() > xy[30:, 0].max() or xy[:30, 0].max() < xy[30:, 0].min()


def test_without_umap_pca_is_used_and_said(monkeypatch):
    monkeypatch.setattr(plane_module, "find_spec", lambda name: None)
    vectors = np.random.default_rng(0).normal(size=(40, 5))
    _, method, notes = plane(vectors, "auto", seed=0)
    assert method == "PCA"
    assert "pip install 'ecg-ensemble[maps]'" in notes[0]
    with pytest.raises(UsageError, match="umap-learn is not installed"):
        plane(vectors, "umap", seed=0)
    with pytest.raises(InputError, match="at least 3 records"):
        plane(vectors[:2], "pca", seed=0)


@pytest.mark.slow
def test_umap_keeps_neighbours_and_its_seed():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 20)) * 10
    group = rng.integers(0, 4, 200)
    vectors = (centres[group] + rng.normal(size=(200, 20))).astype(np.float32)
    xy, method, _ = plane(vectors, "auto", seed=3)
    assert method == "UMAP"
    np.testing.assert_array_equal(xy, plane(vectors, "umap", seed=3)[0])
    assert not np.array_equal(xy, plane(vectors, "umap", seed=4)[0])
    distance = ((xy[:, None] - xy) ** 2).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(axis=1)] == group).mean() > 0.98


# ---- colours ---------------------------------------------------------------------------------------------------------


def test_rare_classes_share_the_last_colour():
    codes = np.repeat(np.arange(10), np.arange(10, 20))
    found = of_classes("task", "label", np.r_[codes, -1], [f"c{k}" for k in range(10)])
    assert found.classes == (*(f"c{k}" for k in range(3, 10)), OTHER)
    assert found.counts == (13, 14, 15, 16, 17, 18, 19, 10 + 11 + 12)
    assert found.codes[-1] == MISSING
    assert found.codes[0] == 7


def test_numbers_become_levels():
    assert of_shares("g", "w", np.array([0, 0.5, 1, np.nan])).codes.tolist() == [0, 127, 254, MISSING]
    found = of_values("t", "age", np.r_[np.linspace(20, 80, 601), np.nan], "years")
    assert (round(found.low, 1), round(found.high, 1)) == (20.6, 79.4)
    assert (found.codes[0], found.codes[300], found.codes[600], found.codes[601]) == (0, 127, 254, MISSING)
    assert (of_values("t", "x", np.full(3, np.nan)).codes == MISSING).all()


def test_a_small_ecg_keeps_the_height_of_r_and_its_gaps():
    signals = np.zeros((12, 5000), np.float32)
    signals[0, 250] = 1.0  # one sample of 2 ms
    signals[1] = np.nan
    signals[2, 100:200] = np.nan
    signals[9, 4000] = 9.0
    found = packed_strokes(signals, 500.0)
    assert found.shape == (12, 125)
    assert (found[0] == 40).nonzero()[0].tolist() == [25]
    assert (found[1] == GAP).all()
    assert (found[2] == GAP).sum() == 10
    assert found[9].max() == 127
    assert (packed_strokes(None, 1.0) == GAP).all()


# ---- the stage -------------------------------------------------------------------------------------------------------


def test_the_page_has_every_colour_and_the_table_every_record(study, tmp_path):
    found, page, table = drawn(study, tmp_path)
    assert (found.n_records, found.n_left_out, found.method, found.n_thumbnails) == (59, 1, "PCA", 59)
    assert found.page_bytes == (tmp_path / "map.html").stat().st_size
    records = open_records(study / "records.parquet")
    assert table["record_id"].tolist() == [name for name in records["record_id"] if name != "r0003"]
    assert np.isfinite(table[["x", "y"]].to_numpy()).all()
    assert pq.read_schema(tmp_path / "map.parquet").metadata[b"space"] == b"gate"
    data = data_of(page)
    names = [f"{one['group']}: {one['name']}" for one in data["colourings"]]
    wanted = ["task sex: label", "task sex: predicted by gate", "task age: label", "task age: predicted by gate"]
    wanted += ["gate: weight of seed for sex", "gate: weight of morphology for age", "record: source", "record: split"]
    assert set(wanted) < set(names)
    assert "record: quality" in names
    assert drawn(study, tmp_path / "again")[1] == page


def codes(data, name):
    import base64

    one = next(one for one in data["colourings"] if f"{one['group']}: {one['name']}" == name)
    return one, np.frombuffer(base64.b64decode(one["codes"]), np.uint8)


def test_colours_are_those_of_the_outputs(study, tmp_path):
    _, page, table = drawn(study, tmp_path)
    data, ids = data_of(page), table["record_id"].tolist()
    assert data["ids"] == ids
    labels, found = codes(data, "task sex: label")
    sex = open_records(study / "records.parquet").set_index("record_id")["sex"]
    assert [labels["classes"][k] for k in found] == [("male", "female")[int(sex[name])] for name in ids]
    block = open_predictions(study / "predictions.parquet").read("sex", "gate", "test")
    said, found = codes(data, "task sex: predicted by gate")
    answers = dict(zip(block.record_ids, np.where(block.y_pred >= 0.5, "female", "male"), strict=True))
    assert {name: said["classes"][k] for name, k in zip(ids, found, strict=True) if k != MISSING} == answers
    weights = open_gate_weights(study / "gate_weights.parquet")
    weights = weights[(weights["split"] == "test") & (weights["task"] == "age") & (weights["expert"] == "seed")]
    _, found = codes(data, "gate: weight of seed for age")
    for name, weight in zip(weights["record_id"], weights["weight"], strict=True):
        assert found[ids.index(name)] == round(weight * 254)


def test_the_test_records_alone_hidden_ids_and_no_small_ecgs(study, tmp_path):
    found, page, table = drawn(study, tmp_path, expert="morphology", records="test", hide_ids=True, thumbnails=5)
    assert found.n_records == len(table) == 6
    assert set(table["split"]) == {"test"}
    assert data_of(page)["ids"] is None
    assert not re.search(r"r00\d\d", page)
    assert data_of(page)["strokes"] is None
    assert "6 records are more than the 5 that may have small ECGs" in page
    assert found.n_thumbnails == 0


def test_the_gates_space_is_the_experts_coordinates_times_their_weights(study):
    from cache.records import records_digest
    from stages.heads import EnsembleHeads
    from stages.learning.data import expert_parts
    from stages.spaces import NewEcg, open_space

    records = open_records(study / "records.parquet")
    stores = {name: study / "embeddings" / f"{name}.zarr" for name in ("seed", "morphology")}
    digest = records_digest(records["record_id"].tolist())
    space = open_space(SpacePaths(stores, study / "heads", study / "signals.zarr"), digest, task="sex")
    vectors = space.read(slice(0, 60))
    assert np.isnan(vectors[3]).all()
    assert np.isfinite(np.delete(vectors, 3, axis=0)).all()
    half = vectors.shape[1] // 2
    heads = EnsembleHeads.load(study / "heads")
    features = {name: expert_parts(open_embeddings(path)) for name, path in stores.items()}
    weights = heads.gate_weights(features)["sex"]
    for k, part in enumerate((vectors[:, :half], vectors[:, half:])):
        length = (np.delete(part, 3, axis=0) / np.delete(weights[:, k : k + 1], 3, axis=0)) ** 2
        assert length.sum(axis=1).mean() == pytest.approx(1, rel=0.05)
    one = {name: {key: array[7:8] for key, array in parts.items()} for name, parts in features.items()}
    np.testing.assert_allclose(space.place(NewEcg(one)), vectors[7], atol=1e-5)
    np.testing.assert_allclose(space.read(slice(7, 9))[0], vectors[7], atol=1e-5)
    with pytest.raises(UsageError, match="--task weight: the fit has no such task"):
        open_space(SpacePaths(stores, study / "heads"), digest, task="weight")


def test_the_command_and_the_entry_of_params(study, ensemble, monkeypatch):
    monkeypatch.chdir(study)
    done = ensemble("map", "--expert", "seed", "--all", "--method", "pca", "--out", "seed.html")
    assert done.returncode == 0, done.stderr
    assert "59 records, PCA" in done.stdout
    assert (study / "seed.parquet").is_file()
    assert ensemble("map", "--name", "gate").returncode == 0
    assert len(pd.read_parquet("maps/gate.parquet")) == 59
    assert "params.yaml has no such map; it has gate" in ensemble("map", "--name", "x").stderr
    assert "give one of them" in ensemble("map", "--expert", "seed", "--gate").stderr
    assert "only the gate's space has a task" in ensemble("map", "--expert", "seed", "--task", "sex").stderr


# ---- in a browser ----------------------------------------------------------------------------------------------------

HANDS = """
const at = (k) => ecgMap.toScreen(k), canvas = document.getElementById('points'), box = canvas.getBoundingClientRect();
const send = (type, [x, y], more = {}) => canvas.dispatchEvent(new PointerEvent(type,
  {clientX: box.left + x, clientY: box.top + y, pointerId: 1, bubbles: true, ...more}));
const wait = ms => new Promise(done => setTimeout(done, ms));
const colours = () => {
  ecgMap.draw();
  const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return new Set(new Uint32Array(all.buffer)).size;
};
"""


def test_hover_lasso_legend_keys_and_zoom_without_network(study, tmp_path):
    browser.chromium()
    _, page, table = drawn(study, tmp_path)
    script = (
        HANDS
        + """
    const first = colours(), found = {};
    send('pointermove', at(4)); await wait(300);
    const ecg = document.getElementById('ecg');
    found.words = document.getElementById('words').innerText;
    found.drawn = ecg.dataset.record;
    found.ink = new Set(new Uint32Array(ecg.getContext('2d').getImageData(0, 0, 500, 150).data.buffer)).size;
    const [x, y] = at(4), around = [[x-3, y-3], [x+3, y-3], [x+3, y+3], [x-3, y+3]];
    send('pointerdown', around[0], {shiftKey: true}); around.slice(1).forEach(p => send('pointermove', p));
    send('pointerup', around[3]); await wait(100);
    found.small = document.getElementById('ids').value.split('\\n');
    document.getElementById('lasso').click();
    const w = box.width, h = box.height;
    send('pointerdown', [1, 1]); for (const p of [[w-1, 1], [w-1, h-1], [1, h-1]]) send('pointermove', p);
    send('pointerup', [1, h-1]); await wait(100);
    found.all = document.getElementById('status').textContent;
    found.csv = ecgMap.csv();
    document.getElementById('clear').click();
    found.cleared = document.getElementById('ids').value;
    document.getElementById('move').click();
    const before = at(4);
    send('pointerdown', [50, 50]); send('pointermove', [80, 70]); send('pointerup', [80, 70]);
    found.moved = at(4).map((v, k) => Math.round(v - before[k]));
    const spread = Math.hypot(at(4)[0] - at(9)[0], at(4)[1] - at(9)[1]);
    canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: -500, clientX: box.left + 99, clientY: box.top + 99}));
    found.closer = Math.hypot(at(4)[0] - at(9)[0], at(4)[1] - at(9)[1]) / spread;
    const key = name => canvas.dispatchEvent(new KeyboardEvent('keydown', {key: name}));
    key('0'); found.home = at(4).map((v, k) => Math.round(v - before[k]));
    key('ArrowLeft'); found.arrow = Math.round(at(4)[0] - before[0] - w / 10); key('0');
    key('Enter'); found.centre = document.getElementById('status').textContent;
    const by = document.getElementById('by'); by.value = '0'; by.dispatchEvent(new Event('change')); await wait(100);
    const buttons = [...document.querySelectorAll('#legend button')];
    found.legend = buttons.map(b => b.innerText.replace(/\\s+/g, ' ').trim());
    const two = colours(); buttons[0].click(); await wait(100);
    found.hidden = [buttons[0].getAttribute('aria-pressed'), colours() < two];
    document.getElementById('visible').click();
    found.shown = document.getElementById('ids').value.split('\\n').length;
    const controls = document.querySelectorAll('button, select, textarea, #points');
    found.named = [...controls]
      .filter(e => !(e.innerText || e.ariaLabel || (e.labels && e.labels.length))).map(e => e.id);
    return {...found, first};
    """
    )
    result = browser.scripted(tmp_path, page, script)
    assert result["errors"] == []
    assert result["requests"] == []
    found = result["answer"]
    name, sex = table["record_id"][4], open_records(study / "records.parquet").set_index("record_id")["sex"]
    assert found["first"] > 2
    assert found["words"].splitlines()[0] == name
    assert found["drawn"] == "4"
    assert found["ink"] > 3
    assert name in found["small"]
    assert len(found["small"]) < 59
    assert found["all"] == "59 of 59 records"
    assert found["csv"].split("\r\n")[:-1] == ["record_id", *table["record_id"]]
    assert found["cleared"] == ""
    assert found["moved"] == [30, 20]
    assert found["closer"] == pytest.approx(np.exp(0.75), rel=0.01)
    assert found["home"] == [0, 0]
    assert found["arrow"] == 0
    assert "r0" in found["centre"]
    n_male = int((sex.drop("r0003") == 0).sum())
    assert found["legend"] == [f"male {n_male}", f"female {59 - n_male}"]
    assert found["hidden"] == ["false", True]
    assert found["shown"] == 59 - n_male
    assert found["named"] == []


CONTRAST = """
const css = getComputedStyle(document.documentElement), value = name => css.getPropertyValue(name).trim();
const light = hex => { const [r, g, b] = [1, 3, 5].map(k => parseInt(hex.slice(k, k + 2), 16) / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const marks = [0, 1, 2, 3, 4, 5, 6, 7].map(k => value('--c' + k)).concat(value('--ramp').split(','));
return {marks: Math.min(...marks.map(c => ratio(c, value('--paper')))), words: ratio(value('--soft'), value('--paper')),
  phone: document.documentElement.scrollWidth};
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_contrast_on_either_paper(tmp_path, dark):
    browser.chromium()
    places = np.random.default_rng(0).normal(size=(50, 2))
    page = render(MapSettings(), "PCA", places, [of_shares("g", "w", np.linspace(0, 1, 50))], None, None, [])
    page = page.replace("prefers-color-scheme: dark) {\n  :root", f"min-width: {0 if dark else 99999}px) {{\n  :root")
    found = browser.scripted(tmp_path, page, CONTRAST)["answer"]
    assert found["marks"] >= 3
    assert found["words"] >= 4.5
    assert found["phone"] <= 1280
