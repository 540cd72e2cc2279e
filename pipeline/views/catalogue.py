"""What `ensemble experts` prints: the table, and one expert in full."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.study.folder import Study

if TYPE_CHECKING:
    from rich.table import Table

    from stages.experts import ExpertSpec


def spec_of(name: str) -> ExpertSpec:
    """Return the published spec of one expert."""
    from stages.experts import expert_class

    cls, variant = expert_class(name)
    return cls.published_spec(variant)


def experts_table(pattern: str = "*", licence: str | None = None, *, present: bool = False) -> Table:
    """Return the table of the experts whose names match a pattern such as `ecgfm*`.

    Parameters
    ----------
    licence
        A part of the licence's name; "open": those that allow commercial use.
    present
        Only those whose weights are at hand.

    Raises
    ------
    UsageError
        None is left.
    """
    from rich.table import Table

    table = Table("expert", "input", "layers", "dim", "parameters", "licence", "weights")
    for name in _chosen(pattern, licence, present=present):
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


def _chosen(pattern: str, licence: str | None, *, present: bool) -> list[str]:
    from cache.errors import UsageError
    from stages.experts import list_experts
    from stages.experts.versions import is_version

    listed = list_experts()
    given = [name for name in _experts_of_study() if is_version(name) and name not in listed]
    chosen = [name for name in [*listed, *given] if fnmatchcase(name, pattern)]
    if licence is not None:
        chosen = [name for name in chosen if _has_licence(spec_of(name), licence)]
    if present:
        chosen = [name for name in chosen if weights_state(spec_of(name)).startswith(("here", "none"))]
    if not chosen:
        raise UsageError(f"no expert is left of '{pattern}' with these options; `ensemble experts` lists all")
    return chosen


def _has_licence(spec: ExpertSpec, wanted: str) -> bool:
    if wanted == "open":
        return not spec.non_commercial
    return wanted.lower() in spec.licence.lower()


def _experts_of_study() -> list[str]:
    """Names under `experts` in params.yaml, none where there is no study."""
    from cache.errors import EnsembleError

    try:
        return list(Study().params.experts)
    except EnsembleError:
        return []


def _input(spec: ExpertSpec) -> str:
    leads = "1 lead" if len(spec.leads) == 1 else f"{len(spec.leads)} leads"
    return f"{leads}, {spec.sampling_rate_hz:g} Hz, {spec.seconds:g} s"


def weights_state(spec: ExpertSpec) -> str:
    """Say in a few words whether an expert's weights are here and where, or what has to be done."""
    from stages.experts.checkpoints import package_folder
    from stages.experts.hub import cached
    from stages.experts.versions import is_trained_version, is_version

    if not spec.needs_weights:
        return "none needed"
    named = _named_in_study(spec.name)
    if named is not None:
        return "here (params.yaml)" if named.exists() else f"missing: params.yaml names {named}"
    if is_version(spec.name):
        return "here (made here)" if is_trained_version(spec.name) else TO_GIVE
    if spec.weights and spec.weights.packaged:
        return "here (in the package)" if package_folder(spec.weights) else f"to install ({spec.weights.package})"
    if cached(spec):
        return "here (hub cache)"
    return TO_FETCH if spec.weights and spec.weights.repo_id else TO_GIVE


def no_need_to_fetch(spec: ExpertSpec) -> str:
    """Say why there is nothing to fetch; "" where the model hub has the weights, or nobody has."""
    from stages.experts.checkpoints import find_weights

    if not spec.needs_weights:
        return f"expert '{spec.name}' needs no weights: nothing to fetch"
    if spec.weights and spec.weights.packaged:
        return f"expert '{spec.name}': its weights come with the package, at {find_weights(spec, None)}"
    return ""


TO_FETCH, TO_GIVE = "to fetch (hub)", "to give (a file)"


def _named_in_study(name: str) -> Path | None:
    from cache.errors import EnsembleError

    try:
        return Study().weights_of(name)
    except EnsembleError:
        return None


def _amplitude(spec: ExpertSpec) -> str:
    """Say on which input paths signals need not be in millivolts."""
    return f"of any unit, lead by lead ({', '.join(spec.scale_free)})" if spec.scale_free else "millivolts"


def lengths(spec: ExpertSpec) -> str:
    """Say how long records must be, and how much of them is seen."""
    seen = "all of a longer one" if spec.longest_s is None else f"the first {spec.longest_s:g} s of a longer one"
    return f"records from {spec.shortest_s:.3g} s; sees {seen}" if spec.shortest_s else f"records of any length; {seen}"


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
        "amplitude": _amplitude(spec),
        "windows": spec.windows,
        "lengths": lengths(spec),
        "missing leads": spec.missing_leads,
        "layers": layers,
        "embedding": f"{spec.embedding_dim}" + (f", output {spec.output_dim}" if spec.output_dim else ""),
        "views": ", ".join(spec.views),
        "parameters": f"{spec.published_parameters:,}",
        "licence": spec.licence + (" (non-commercial: accept it with --accept-licence)" if spec.non_commercial else ""),
        "trained here": _trainable(name),
        "made by": _made_by(name),
        "pretrained on": ", ".join(spec.pretrained_on) or ("" if "+" in name else "none of the cohorts here"),
        "weights": weights_state(spec),
        "looked for in": "; ".join(_places(spec)),
        "how to get them": _how_to_get(spec),
        "pinned": _pinned(spec),
    }
    lines = {title: text for title, text in lines.items() if text}
    width = max(map(len, lines))
    return "\n".join(f"{title:<{width}}  {text}" for title, text in lines.items())


def _trainable(name: str) -> str:
    """Say which commands can train an expert; nothing for a version, which says what it was made by."""
    from stages.experts import expert_class
    from stages.experts.versions import is_version

    cls, _ = expert_class(name)
    commands = ["ensemble pretrain"] if cls.pretraining is not None and not is_version(name) else []
    return ", ".join([*commands, "ensemble posttrain"] if cls.residual_branches else commands)


def _made_by(name: str) -> str:
    """Say what a version was made from; nothing for an expert."""
    from stages.experts.versions import is_trained_version, read_version

    if not is_trained_version(name):
        return ""
    facts = read_version(name).facts
    cohort, curve = facts["cohort"], facts["curve"]
    aim = f" to {facts['task']}" if facts.get("task") else ""
    parent = f" from {facts['parent']}" if facts.get("parent") else ""
    losses = ", ".join(f"{key.replace('_', ' ')} {curve[-1][key]:.4g}" for key in curve[-1] if key != "epoch")
    on = f"{cohort['n_records']:,} records of {cohort['n_patients']:,} patients"
    where = f"{', '.join(cohort['sources'])}; split {cohort['split_digest'][:8]}"
    epochs = f"after {curve[-1]['epoch']:.0f} epochs {losses}"
    return f"ensemble {facts['made_by']}{aim}{parent}, on {on} ({where}); {epochs}"


def _places(spec: ExpertSpec) -> list[str]:
    """Say where weights are looked for, in that order; nothing where none are needed."""
    from huggingface_hub import constants

    from stages.experts.versions import is_trained_version

    source = spec.weights
    if not spec.needs_weights:
        return []
    if is_trained_version(spec.name):
        return [source.note if source else ""]
    places = ["--weights", f"experts.{spec.name}.weights in params.yaml"]
    if source and source.packaged:
        return [*places, f"the package {source.package}".strip()]
    return [*places, f"hub cache {constants.HF_HUB_CACHE}"] if source and source.repo_id else places


def _how_to_get(spec: ExpertSpec) -> str:
    from stages.experts.versions import is_trained_version

    source = spec.weights
    if not spec.needs_weights:
        return "none needed"
    if is_trained_version(spec.name):
        return ""
    if source and source.packaged:
        return f"pip install 'ecg-ensemble[{source.package}]'" if source.package else "nothing to do"
    if source and source.repo_id:
        return f"ensemble weights fetch {spec.name}; embed does it too (hub {source.repo_id}, {source.filename})"
    digest = f" (sha256 of {source.filename}: {source.sha256})" if source and source.sha256 else ""
    return f"{source.note if source and source.note else spec.source}{digest}; then give the file"


def _pinned(spec: ExpertSpec) -> str:
    """Say which commit and digest are accepted, and since when."""
    from stages.experts.hub import asked_revision, is_commit, pin_of

    source = spec.weights
    if source is not None and source.packaged:
        return f"by this release, sha256 {source.sha256}"
    if source is None or not source.repo_id or "+" in spec.name:
        return ""
    pin, revision = pin_of(source), asked_revision(source)
    if not is_commit(revision):
        commit = f"not yet: the first download pins the commit of '{revision}'"
    else:
        commit = f"{'by this release' if is_commit(source.revision) else 'at first use'}: {revision}"
    digest = source.sha256 or (pin.sha256 if pin else "recorded at first use")
    return f"{commit}, sha256 {digest}"
