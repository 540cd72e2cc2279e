"""One style for all pictures of ECGs: colours and sizes."""

from __future__ import annotations

from typing import Any

FINE, BOLD = "#f7d9d6", "#eeb3ad"
"""Lines of the grid, every 1 and every 5 mm."""
TRACE, WORDS, SOFT, WARN = "#10141a", "#1b1f24", "#5c6570", "#b34700"
GAP = "#c9ced6"
FOR, AGAINST = "#d55e00", "#0072b2"
"""What speaks for an answer and what against it: Okabe & Ito's vermilion and blue."""
TRACE_POINTS = 0.75
"""Width of the trace, in points of 1/72 inch: 0.26 mm."""
MM_PER_INCH = 25.4

RC: Any = {
    "svg.hashsalt": "ensemble",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "path.simplify": True,
    "path.simplify_threshold": 0.05,
}
"""Settings of matplotlib: the same picture gives the same bytes, and words stay words."""
