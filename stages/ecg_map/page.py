"""The map's page: one file with its data, style and script. Lives here: packing. Not here: drawing (`map.js`)."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from cache.signals import LEADS
from stages.ecg_map.colours import Colouring
from stages.ecg_map.settings import MapSettings
from stages.plots.layouts import LAYOUTS
from stages.plots.strokes import GAP, POINTS_HZ, UNITS_PER_MV

COORDINATE_LEVELS = 65_535
BLOCK_RECORDS = 64
"""Small ECGs that are unpacked together, when one of them is first looked at."""


def render(
    settings: MapSettings,
    method: str,
    places: np.ndarray,
    found: Sequence[Colouring],
    ids: Sequence[str] | None,
    strokes: np.ndarray | None,
    notes: Sequence[str],
) -> str:
    """Return map.html.

    Parameters
    ----------
    places
        float [n, 2].
    ids
        None: the page names points by their row in map.parquet.
    strokes
        int8 [n, 12, points], from `stages.plots.strokes`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stages.ecg_map", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    assert environment.loader is not None
    style, script = (Markup(environment.loader.get_source(environment, name)[0]) for name in ("map.css", "map.js"))
    data = {
        "n": len(places),
        "xy": _text(_levels(places)),
        "ids": None if ids is None else list(ids),
        "colourings": [_colouring(one) for one in found],
        "strokes": None if strokes is None else _packed(strokes),
    }
    return environment.get_template("map.html").render(
        title=settings.title,
        about=f"{len(places):,} records, {method} of the space of {settings.space}, seed {settings.seed}",
        notes=list(notes),
        named=ids is not None,
        style=style,
        script=script,
        data=Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")),
    )


def _text(values: np.ndarray | bytes) -> str:
    return base64.b64encode(values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()).decode()


def _levels(places: np.ndarray) -> np.ndarray:
    """Return both coordinates on one scale, the longer side from 0 to 65,535, little-endian uint16 [n, 2]."""
    low, high = places.min(axis=0), places.max(axis=0)
    side = max(float((high - low).max()), 1e-12)
    centred = (places - (low + high) / 2) / side + 0.5
    return np.rint(np.clip(centred, 0, 1) * COORDINATE_LEVELS).astype("<u2")


def _colouring(one: Colouring) -> dict[str, Any]:
    facts = {"group": one.group, "name": one.name, "codes": _text(one.codes), "unit": one.unit}
    if one.classes:
        return facts | {"classes": list(one.classes), "counts": list(one.counts)}
    return facts | {"low": one.low, "high": one.high}


def _packed(strokes: np.ndarray) -> dict[str, Any]:
    """Pack blocks of records: differences from point to point, modulo 256, deflated."""
    flat = strokes.astype(np.uint8).reshape(len(strokes), -1)
    steps = np.diff(flat, axis=1, prepend=np.uint8(0))
    parts = (steps[start : start + BLOCK_RECORDS] for start in range(0, len(steps), BLOCK_RECORDS))
    strips = [strip for strip in LAYOUTS["3x4"].strips if not strip.rhythm]
    return {
        "blocks": [_text(zlib.compress(part.tobytes(), 9)) for part in parts],
        "per_block": BLOCK_RECORDS,
        "points": strokes.shape[2],
        "rate_hz": POINTS_HZ,
        "units_per_mv": UNITS_PER_MV,
        "gap": GAP,
        "strips": [[LEADS.index(strip.lead), strip.lead, strip.start_s, strip.row] for strip in strips],
    }
