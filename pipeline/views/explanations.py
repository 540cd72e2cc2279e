"""What `ensemble explain` asks, and what it and `ensemble similar` print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from cache.errors import UsageError
from pipeline.compute.embedding import embed_settings, is_imported
from pipeline.study.folder import Study
from pipeline.views.ecgs import find_ecg

if TYPE_CHECKING:
    from stages.explain import ExplainSettings, ExplainSummary

LEAST_PROBABILITY = 1e-6
N_SECONDS_SHOWN = 3


def explain_settings(
    study: Study, record: str, task: str, label: str | None, device: str | None, threads: int | None
) -> ExplainSettings:
    """Load the fit and its experts, and say whose answer is explained.

    Raises
    ------
    UsageError
        The fit has no such task, or the task no such class.
    """
    from stages.embed import describe, load_for
    from stages.experts.run import RunSettings
    from stages.explain import ExplainSettings
    from stages.heads import EnsembleHeads
    from stages.learning.data import expert_identity
    from stages.predict import answers
    from stages.readers.files import Recorded

    ecg, names = find_ecg(study, record), [n for n in study.fitted_experts() if not is_imported(study, n)]
    heads = EnsembleHeads.load(study.heads)
    target = next((one for one in heads.tasks_ if one.name == task), None)
    if target is None:
        raise UsageError(f"--task {task}: the fit has no such task; it has {', '.join(t.name for t in heads.tasks_)}")
    _check_class(target, label)
    chosen = {
        n: embed_settings(study, n, None, device, None, None, accept_licence=True, threads=threads) for n in names
    }
    experts = {name: load_for(each) for name, each in chosen.items()}
    identities = {name: expert_identity(describe(each)) for name, each in chosen.items()}
    running = next((RunSettings(threads=s.threads, batch_size=s.batch_size) for s in chosen.values()), None)

    def ask(ecgs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        recorded = [Recorded(record, signals_mv, ecg.rate_hz) for signals_mv in ecgs]
        return {source: said[task] for source, said in answers(recorded, heads, experts, identities, running).items()}

    column, label = _column(target, label, ask, ecg.signals_mv)
    scale = SCALES.get(target.kind, "log odds") or target.unit or "value"
    asked = _on_scale(ask, column, scale)
    return ExplainSettings(ecg.signals_mv, ecg.rate_hz, asked, ecg.name, task, label, scale, amplitude=ecg.amplitude)


def _check_class(target: Any, label: str | None) -> None:
    if label is not None and label not in target.classes:
        known = ", ".join(target.classes) or "none: it is a value"
        raise UsageError(f"--class {label}: task {target.name} has no such class; its classes: {known}")


SCALES = {"regression": "", "survival": "log hazard"}
"""Kinds whose answers are explained as they are, and in what; empty: in the task's unit."""
Ask = Callable[[Sequence[np.ndarray]], Mapping[str, np.ndarray]]


def _column(target: Any, label: str | None, ask: Ask, signals_mv: np.ndarray) -> tuple[int | None, str]:
    """Return the column of the answer and the class's name; None for a value, -1 for the first class of two."""
    if target.kind in SCALES:
        return 0 if target.kind == "survival" else None, ""
    if target.kind == "binary":
        negative = label is not None and label == target.classes[0]
        return (-1 if negative else 0), label or (target.classes[1] if target.classes else "1")
    column = int(np.nanargmax(ask([signals_mv])["gate"][0])) if label is None else target.classes.index(label)
    return column, target.classes[column]


def _on_scale(ask: Ask, column: int | None, scale: str) -> Ask:
    """Return one number an ECG: a value as it is, a probability as log odds."""

    def answer(ecgs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for source, said in ask(ecgs).items():
            values = np.asarray(said, dtype=np.float64)
            values = values[:, column] if values.ndim == 2 and column is not None else values
            if scale == "log odds":
                held = np.clip(values, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
                values = np.log(held / (1 - held)) * (-1 if column == -1 else 1)
            found[source] = values
        return found

    return answer


def explanation_tables(found: ExplainSummary) -> list[Table]:
    """Return one table: sources down; answer, strongest lead, seconds and beat parts across."""
    about = found.about
    table = Table(
        title=f"{about['record']}: {about['task']} {about['class']}".rstrip(),
        caption=f"{found.n_passes} passes; effects in {about['scale']}, above 0 speaks for it",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("source", "answer", "leads", "seconds", "beat parts"):
        table.add_column(name, justify="right" if name == "answer" else "left")
    for name, source in found.sources.items():
        seconds = {f"{k}-{k + 1} s": effect for k, effect in enumerate(source.seconds)}
        cells = (_strongest(source.leads), _strongest(seconds), _strongest(source.parts, len(source.parts)))
        table.add_row(name, f"{source.answer:.3g}", *cells)
    return [table]


def _strongest(effects: Mapping[str, float], n_shown: int = N_SECONDS_SHOWN) -> str:
    known = {name: effect for name, effect in effects.items() if np.isfinite(effect)}
    ranked = sorted(known.items(), key=lambda item: -abs(item[1]))[:n_shown]
    return ", ".join(f"{name} {effect:+.2g}" for name, effect in ranked)


def neighbour_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return neighbours down; distance and labels across."""
    table = Table(title=title, caption="distance: 1 - cosine", title_justify="left", caption_justify="left")
    for name in rows[0] if rows else ("record_id",):
        table.add_column(name)
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
