"""What `ensemble experts` prints: the table, and one expert in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.study import Study

if TYPE_CHECKING:
    from rich.table import Table

    from stages.experts import ExpertSpec


def spec_of(name: str) -> ExpertSpec:
    """Return the published spec of one expert."""
    from stages.experts import expert_class

    cls, variant = expert_class(name)
    return cls.published_spec(variant)


def experts_table() -> Table:
    """Return the table of all experts."""
    from rich.table import Table

    from stages.experts import list_experts

    table = Table("expert", "input", "layers", "dim", "parameters", "licence", "weights")
    for name in list_experts():
        spec = spec_of(name)
        table.add_row(
            name,
            _input(spec),
            str(len(spec.layer_names)),
            str(spec.embedding_dim),
            f"{spec.published_parameters:,}",
            spec.licence + (" (non-commercial)" if spec.non_commercial else ""),
            weights_state(spec),
        )
    return table


def _input(spec: ExpertSpec) -> str:
    leads = "1 lead" if len(spec.leads) == 1 else f"{len(spec.leads)} leads"
    return f"{leads}, {spec.sampling_rate_hz:g} Hz, {spec.seconds:g} s"


def weights_state(spec: ExpertSpec) -> str:
    """Say in a few words where an expert's weights are, or that it needs none."""
    from stages.experts._hub import cached

    if not spec.needs_weights:
        return "none needed"
    if _named_in_study(spec.name):
        return "params.yaml"
    if "+" in spec.name:
        return "made here"
    if cached(spec):
        return "in the hub cache"
    return "on the hub" if spec.weights and spec.weights.repo_id else "give a file"


def _named_in_study(name: str) -> bool:
    from cache.errors import EnsembleError

    try:
        path = Study().weights_of(name)
    except EnsembleError:
        return False
    return path is not None and path.exists()


def expert_details(name: str) -> str:
    """Return everything about one expert, as aligned lines."""
    spec = spec_of(name)
    layers = ", ".join(f"{n} ({d})" for n, d in zip(spec.layer_names, spec.layer_dims, strict=True))
    lines = {
        "expert": f"{name}: {spec.title}",
        "source": spec.source,
        "version": spec.version,
        "input": f"{', '.join(spec.leads)}; {spec.sampling_rate_hz:g} Hz; {spec.seconds:g} s",
        "normalisation": spec.normalisation,
        "windows": spec.windows,
        "missing leads": spec.missing_leads,
        "layers": layers,
        "embedding": f"{spec.embedding_dim}" + (f", output {spec.output_dim}" if spec.output_dim else ""),
        "parameters": f"{spec.published_parameters:,}",
        "licence": spec.licence + (" (non-commercial: accept it with --accept-license)" if spec.non_commercial else ""),
        "pretrained on": ", ".join(spec.pretrained_on) or "nothing",
        "weights": weights_state(spec),
        "how to get them": _how_to_get(spec),
    }
    width = max(map(len, lines))
    return "\n".join(f"{title:<{width}}  {text}" for title, text in lines.items())


def _how_to_get(spec: ExpertSpec) -> str:
    source = spec.weights
    if not spec.needs_weights:
        return "none needed"
    if source is None or not source.repo_id:
        note = source.note if source else ""
        if "+" in spec.name:
            return note
        return f"{note or spec.source}; then experts.{spec.name}.weights in params.yaml, or --weights FILE"
    digest = f", sha256 {source.sha256}" if source.sha256 else ", sha256 recorded at first use"
    return f"ensemble weights fetch {spec.name} (hub {source.repo_id}, {source.filename} at {source.revision}{digest})"
