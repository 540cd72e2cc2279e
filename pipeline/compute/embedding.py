"""What one run of `embed` is to do: params.yaml and the options of a command, joined and checked.

Lives here: the settings, and which experts have nothing to run. Not here: running them (`workers`, `cluster`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cache.errors import UsageError
from pipeline.study.folder import Study

if TYPE_CHECKING:
    from stages.embed import EmbedSettings


def is_imported(study: Study, expert: str) -> bool:
    """Whether another tool made this expert's vectors: no such expert here, but a whole store of these records.

    Raises
    ------
    StoreError
        Such a store that is incomplete, or of other records.
    """
    from cache import open_embeddings
    from cache.record_rows import RecordRows
    from cache.storage.locations import store_exists
    from stages.experts import expert_class
    from stages.experts.versions import is_trained_version, is_version

    try:
        if is_version(expert) and not is_trained_version(expert) and study.weights_of(expert) is None:
            raise UsageError(f"'{expert}' has no weights")
        expert_class(expert)
    except UsageError:
        if not store_exists(study.embedding(expert)):
            return False
        store = open_embeddings(study.embedding(expert))
        store.require_records(RecordRows(study.records).digest())
        store.require_complete()
        return True
    return False


def embed_settings(
    study: Study,
    expert: str,
    weights: Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    batch_size: str | None = None,
    accept_licence: bool = False,
    threads: int | None = None,
    zscores_as_mv: bool = False,
) -> EmbedSettings:
    """Join params.yaml and the options into the settings of one run, checked."""
    from stages.devices import choose_device
    from stages.embed import EmbedSettings
    from stages.experts import expert_class
    from stages.experts.views import checked_views

    cls, variant = expert_class(expert)
    params, machine = study.expert_params(expert), study.machine()
    spec = cls.published_spec(variant)
    if spec.non_commercial and not (accept_licence or params.accept_licence):
        raise UsageError(
            f"expert '{expert}' is licensed {spec.licence}; if your use allows it, say --accept-licence or set "
            f"experts.{expert}.accept_licence: true in params.yaml"
        )
    return EmbedSettings(
        expert=expert,
        weights=weights or study.weights_of(expert),
        config=params.config or None,
        preprocessing=params.preprocessing,
        precision=_precision(precision or params.precision),  # type: ignore[arg-type]
        dtype=params.dtype,
        device=choose_device(device or machine.device),
        batch_size=_batch_size(batch_size or str(machine.batch_size)),
        shard_records=study.params.embed.shard_records,
        threads=threads or machine.threads,
        views=checked_views(spec, params.views),
        zscores_as_mv=zscores_as_mv or params.zscores_as_mv,
    )


def _precision(name: str) -> str:
    if name not in ("fp32", "bf16", "fp16"):
        raise UsageError(f"--precision {name}: expected fp32, bf16 or fp16")
    return name


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch-size {text}: expected a positive number or auto")
    return int(text)


def settings_json(settings: EmbedSettings) -> dict[str, object]:
    """Return the settings as the run record keeps them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
