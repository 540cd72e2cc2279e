"""What each method cost: parameters from the evaluation, seconds and memory from where it was fitted.

Not here: measuring them (`stages.fit_heads`, `stages.evaluate`), the table (`tables`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.scoring.comparison import EXPERT_PREFIX

ON_HEADS = ("mean", "stacking")
"""Methods that read the experts' fitted heads; what they train themselves is next to nothing."""
Costs = dict[str, dict[str, Any]]


def method_costs(
    parameters: Mapping[str, float], evaluation: Mapping[str, Mapping[str, Any]], fit: Mapping[str, Any]
) -> Costs:
    """Return method -> trainable parameters, seconds and peak memory, as far as the outputs say them.

    Methods that stand on the experts' heads count these ("counts_heads" says so).

    Parameters
    ----------
    parameters
        Method -> trainable parameters, from evaluation.json.
    evaluation, fit
        Contents of evaluate_costs.json and fit_costs.json.
    """
    costs: Costs = {name: {"parameters": n, **evaluation.get(name, {})} for name, n in parameters.items()}
    kept = ("seconds", "peak_memory_mb")
    if "gate" in costs:
        costs["gate"] |= {key: fit.get(key) for key in kept}
    if "enecg" in costs and fit.get("enecg"):
        costs["enecg"] |= {key: fit["enecg"].get(key) for key in kept}
    for name, seconds in fit.get("expert_seconds", {}).items():
        if EXPERT_PREFIX + name in costs:
            costs[EXPERT_PREFIX + name]["seconds"] = seconds
    _count_heads(costs)
    return {name: {key: value for key, value in found.items() if value is not None} for name, found in costs.items()}


def _count_heads(costs: Costs) -> None:
    heads = [found for name, found in costs.items() if name.startswith(EXPERT_PREFIX)]
    for name in [name for name in ON_HEADS if name in costs]:
        for key in ("parameters", "seconds"):
            parts = [found.get(key) for found in (costs[name], *heads)]
            costs[name][key] = None if None in parts else sum(parts)
        costs[name]["counts_heads"] = True
