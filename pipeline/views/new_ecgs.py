"""An ECG file as the experts of a space see it, by the same door as `predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cache.embeddings import open_embeddings
from cache.errors import FingerprintError, InputError, UsageError
from pipeline.compute.embedding import embed_settings, is_imported
from pipeline.study.folder import Study

if TYPE_CHECKING:
    from stages.readers.files import Recorded
    from stages.spaces.space import NewEcg


def of_expert(study: Study, ecg: Recorded, expert: str, device: str | None) -> NewEcg:
    """Embed an ECG as the store of one expert was made.

    Raises
    ------
    UsageError
        Another tool made the store: there is nothing to run.
    FingerprintError
        The expert is not the one that made the store.
    InputError
        The expert takes no such ECG.
    """
    from stages.embed import describe, load_for
    from stages.experts.run import RunSettings, Signal, embed_records
    from stages.learning.data import expert_identity
    from stages.spaces.space import NewEcg

    if is_imported(study, expert):
        raise UsageError(f"--expert {expert}: another tool made its vectors; it cannot embed {ecg.name}")
    settings, store = (
        embed_settings(study, expert, device=device, accept_licence=True),
        open_embeddings(study.embedding(expert)),
    )
    if expert_identity(describe(settings)) != expert_identity(store.attributes):
        raise FingerprintError(
            f"expert '{expert}' is not the one that made {store.path} (weights, version, preprocessing or precision "
            f"differ); run `ensemble embed --expert {expert}` again"
        )
    running = RunSettings(str(store.embedding.dtype), settings.threads, settings.batch_size)
    found = embed_records(load_for(settings), [Signal(ecg.signals_mv, ecg.rate_hz)], running)
    if found.reasons:
        raise InputError(f"{ecg.name}: expert {expert} gave nothing: {found.reasons[0]}")
    return NewEcg({expert: {"embedding": found.embedding}})


def of_fit(study: Study, ecg: Recorded, device: str | None) -> NewEcg:
    """Embed an ECG with all experts of the fit that can run, and say what the gate sees of it.

    Raises
    ------
    FingerprintError
        An expert is not the one that the heads were fitted on.
    """
    from stages.embed import describe, load_for
    from stages.experts.run import RunSettings
    from stages.heads import EnsembleHeads
    from stages.learning.data import expert_identity
    from stages.predict import features_of
    from stages.spaces.space import NewEcg

    names = [name for name in study.fitted_experts() if not is_imported(study, name)]
    chosen = {name: embed_settings(study, name, device=device, accept_licence=True) for name in names}
    experts: dict[str, Any] = {name: load_for(settings) for name, settings in chosen.items()}
    identities = {name: expert_identity(describe(settings)) for name, settings in chosen.items()}
    running = next((RunSettings(threads=s.threads, batch_size=s.batch_size) for s in chosen.values()), None)
    heads = EnsembleHeads.load(study.heads)
    return NewEcg(*features_of([ecg], heads, experts, identities, running))
