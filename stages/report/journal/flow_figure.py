"""The flow of participants as a picture: boxes from all records down to the labelled ones of each split.

Lives here: the drawing. Not here: the counts (`flow`).
"""

from __future__ import annotations

from stages.report.journal.flow import ALL, Flow, FlowGroup
from stages.report.svg import Drawing

_WIDE, _LINE, _PAD, _GAP = 940.0, 17.0, 10.0, 28.0
MOST_REASONS, MOST_TASKS = 4, 12
_NAMES = {"train": "Training", "val": "Validation", "test": "Test"}


def flow_figure(flow: Flow) -> str:
    """Return the flow as SVG: records in, those left out beside the arrow, then one box a split."""
    last = flow.splits or (flow.whole,)
    boxes = [_split_lines(group, flow) for group in last]
    first, lost, middle = _first_lines(flow), _lost_lines(flow), _middle_lines(flow)
    heights = [_height(first), max(_height(lost), 2 * _GAP), _height(middle), max(_height(lines) for lines in boxes)]
    height = sum(heights) + 3 * _GAP + 4
    drawing = Drawing(_WIDE, height, "Flow of participants")
    centre, y = _WIDE * 0.3, 2.0
    _box(drawing, centre, y, 330, first)
    below = y + heights[0]
    top = below + _GAP / 2
    _box(drawing, _WIDE * 0.76, top, 400, lost)
    y = below + heights[1] + _GAP
    branch = top + _height(lost) / 2
    drawing.line([(centre, below), (centre, y)], "arrow")
    drawing.line([(centre, branch), (_WIDE * 0.76 - 200, branch)], "arrow")
    _box(drawing, centre, y, 330, middle)
    below, y = y + heights[2], y + heights[2] + _GAP
    width = (_WIDE - 20) / len(boxes)
    for k, lines in enumerate(boxes):
        x = 10 + width * (k + 0.5)
        drawing.line([(centre, below), (centre, below + _GAP / 2), (x, below + _GAP / 2), (x, y)], "arrow")
        _box(drawing, x, y, width - 16, lines)
    return drawing.svg()


def _height(lines: list[str]) -> float:
    return len(lines) * _LINE + 2 * _PAD


def _box(drawing: Drawing, x: float, y: float, width: float, lines: list[str]) -> None:
    drawing.box(x - width / 2, y, (width, _height(lines)), "frame")
    for k, words in enumerate(lines):
        drawing.text(x, y + _PAD + (k + 0.75) * _LINE, words, "label middle strong" if k == 0 else "label middle")


def _counted(records: int, patients: int) -> str:
    return f"{records:,} records of {patients:,} patients"


def _first_lines(flow: Flow) -> list[str]:
    sources = [group for group in flow.groups if group.split == ALL and group.source != ALL]
    whole = flow.whole
    listed = [f"{group.source}: {_counted(group.records, group.patients)}" for group in sources]
    return ["Records taken in", _counted(whole.records, whole.patients), *listed]


def _lost_lines(flow: Flow) -> list[str]:
    shown = [f"{_short(reason)}: {n:,}" for reason, n in flow.reasons[:MOST_REASONS]]
    more = sum(n for _, n in flow.reasons[MOST_REASONS:])
    return [f"Not readable: {flow.whole.bad:,} records", *shown, *([f"other reasons: {more:,}"] if more else [])]


def _middle_lines(flow: Flow) -> list[str]:
    words = "each fold is tested once, by a fit that has not seen its patients" if flow.rotated else ""
    return ["Readable", _counted(flow.whole.readable, flow.whole.readable_patients), *([words] if words else [])]


def _split_lines(group: FlowGroup, flow: Flow) -> list[str]:
    title = "All folds" if group.split == ALL else _NAMES.get(group.split, group.split)
    tasks = flow.tasks[:MOST_TASKS]
    listed = [
        f"{_short(name, 22)}: {group.labelled[name]:,} labelled, {group.readable - group.labelled[name]:,} not"
        for name in tasks
    ]
    more = [f"and {len(flow.tasks) - MOST_TASKS} more tasks"] if len(flow.tasks) > MOST_TASKS else []
    return [title, _counted(group.readable, group.readable_patients), *listed, *more]


def _short(words: str, most: int = 52) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
