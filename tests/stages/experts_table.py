"""The table of experts in docs/experts.md, written from the specs: `python -m tests.stages.experts_table`."""

from pathlib import Path

from stages.experts import ExpertSpec, expert_class, list_experts

DOC = Path(__file__).parents[2] / "docs/experts.md"
BEGIN, END = "<!-- table of experts, written by tests/stages/experts_table.py -->\n", "<!-- end of the table -->\n"
POLICIES = "| expert | normalisation | windows | record, s | missing leads, NaN | pretrained on |"
HEAD = "| expert | input | input paths | layers | embedding (output) | parameters | licence | weights |"


def own_experts() -> list[str]:
    """Names of the experts of this repository."""
    return [name for name in list_experts() if expert_class(name)[0].__module__.startswith("stages.")]


def table() -> str:
    """Return the Markdown tables: facts of every expert, then the policies of each family."""
    rows = [HEAD, "|---|---|---|---|---|---|---|---|", *(_facts(name) for name in own_experts())]
    policies = [POLICIES, "|---|---|---|---|---|---|"]
    families = [name for name in own_experts() if _spec(name).name == name and not _is_size(name)]
    return "\n".join([*rows, "", *policies, *(_policies(name) for name in families)]) + "\n"


def _is_size(name: str) -> bool:
    cls, _ = expert_class(name)
    return any(name.endswith(f"-{variant}") for variant in cls.variants)


def _spec(name: str) -> ExpertSpec:
    cls, variant = expert_class(name)
    return cls.published_spec(variant)


def _facts(name: str) -> str:
    spec, paths = _spec(name), expert_class(name)[0].preprocessing_variants
    leads = "lead " + spec.leads[0] if len(spec.leads) == 1 else f"{len(spec.leads)} leads"
    width = f"{spec.embedding_dim}" + (f" ({spec.output_dim})" if spec.output_dim else "")
    licence = f"{spec.licence} (non-commercial)" if spec.non_commercial else spec.licence
    cells = [name, f"{leads}, {spec.sampling_rate_hz:g} Hz, {spec.seconds:g} s", ", ".join(paths)]
    cells += [str(len(spec.layer_names)), width, f"{spec.published_parameters:,}", licence, _weights(spec)]
    return "| " + " | ".join(cells) + " |"


def _weights(spec: ExpertSpec) -> str:
    if not spec.needs_weights:
        return "none needed"
    if spec.weights is not None and spec.weights.packaged:
        return f"in the package {spec.weights.package}".strip()
    if spec.weights is None or not spec.weights.repo_id:
        return "a file, see below"
    return f"hub {spec.weights.repo_id}, {spec.weights.filename}"


def _policies(name: str) -> str:
    spec = _spec(name)
    seen = ", ".join(spec.pretrained_on) or "-"
    lengths = f"from {spec.shortest_s:.3g}" + ("" if spec.longest_s is None else f", the first {spec.longest_s:g}")
    return f"| {name} | {spec.normalisation} | {spec.windows} | {lengths} | {spec.missing_leads} | {seen} |"


def main() -> None:
    """Write the table into the page."""
    before, _, rest = DOC.read_text().partition(BEGIN)
    DOC.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
