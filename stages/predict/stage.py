"""Stage `predict`: what a saved fit says of new ECGs, with the gate's weights and what to beware of.

`run` writes Parquet files, by any number of processes; `stream` gives objects, some at a time; `predict` and `answers`
take ECGs that are in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.experts.run import RunSettings, torch_threads
from stages.heads import EnsembleHeads
from stages.predict.ahead import prepared_ahead
from stages.predict.answering import Answerer, predictions_of
from stages.predict.batches import (
    Features,
    ListedFiles,
    RecordBatch,
    RecordSource,
    StudyRecords,
    add_signals,
    row_options,
)
from stages.predict.inputs import RowList, listed
from stages.predict.parts import FilePredictor, Progress
from stages.predict.settings import Prediction, PredictPaths, PredictSettings, PredictSummary
from stages.readers.files import Recorded

if TYPE_CHECKING:
    from stages.experts import Expert


def run(settings: PredictSettings, paths: PredictPaths, progress: Progress | None = None) -> PredictSummary:
    """Predict records into `paths.out` and the files beside it, in this process.

    Memory does not grow with the number of records. A killed run goes on with the part where it stopped; several
    processes may run at once, and the files are the same bytes. `FilePredictor` has the steps one by one.

    Parameters
    ----------
    progress
        Called with the number of records just predicted.

    Raises
    ------
    UsageError
        `paths.out` is no Parquet file, or one that is no output of `predict`.
    MissingFileError
        No fit, or no record.
    FingerprintError
        An expert is not the one that the heads were fitted on.
    """
    started = time.perf_counter()
    predictor = FilePredictor(settings, paths)
    predictor.prepare()
    n_computed = predictor.run(progress=progress)
    summary = predictor.finish()
    summary.n_computed, summary.seconds = n_computed, time.perf_counter() - started
    return summary


def stream(
    settings: PredictSettings, paths: PredictPaths, summary: PredictSummary, notes: list[str] | None = None
) -> Iterator[list[Prediction]]:
    """Give the predictions of all records in their order, some at a time.

    Parameters
    ----------
    summary
        Is filled meanwhile; `unreadable` has a line for every record that cannot be read.
    notes
        Gets a line for what was left out of folders.
    """
    heads, notes = EnsembleHeads.load(paths.heads), [] if notes is None else notes
    source: RecordSource
    if paths.study is not None:
        source = StudyRecords(paths.study, heads, [*settings.experts])
    else:
        rows = list(listed(paths.records, follow_links=settings.follow_links, notes=notes))
        source = ListedFiles(RowList(rows), heads, row_options(heads), follow_links=settings.follow_links)
    notes += source.notes
    summary.n_records, step = len(source), settings.records_at_once
    answerer = _answerer(settings, heads, source)
    wanted = ((None, slice(start, min(start + step, len(source)))) for start in range(0, len(source), step))
    with torch_threads((settings.running or RunSettings()).threads):
        for _, prepared in prepared_ahead(source, answerer, wanted):
            answers = answerer.answer(prepared)
            summary.unreadable += prepared.batch.unreadable.values()
            summary.n_unreadable = len(summary.unreadable)
            found = predictions_of(prepared.batch, heads, answers)
            summary.n_predicted += len(found)
            summary.n_computed += len(found)
            if found:
                yield found


def _answerer(settings: PredictSettings, heads: EnsembleHeads, source: RecordSource) -> Answerer:
    return Answerer(
        heads,
        settings.experts,
        settings.identities,
        settings.running,
        cached=source.cached_experts,
        n_records=len(source),
    )


def predict(
    records: Sequence[Recorded],
    heads: EnsembleHeads,
    experts: Mapping[str, Expert],
    identities: Mapping[str, str],
    settings: RunSettings | None = None,
) -> list[Prediction]:
    """Run the experts on new ECGs and let the fitted heads and gate decide.

    Parameters
    ----------
    experts
        Those of the fit; one that is not given counts as absent, and its weight goes to the others.
    identities
        Expert -> digest of what it is now (`stages.learning.data.expert_identity`).
    settings
        Threads and batch size of the experts' stores; numbers are rounded as those stores are.

    Raises
    ------
    FingerprintError
        An expert is not the one that the heads were fitted on (other weights, version, preprocessing or precision).
    """
    batch, answerer = _in_memory(records, heads), Answerer(heads, experts, identities, settings, n_records=len(records))
    with torch_threads((settings or RunSettings()).threads):
        answers = answerer.answer(answerer.prepare(batch))
    return predictions_of(batch, heads, answers)


def answers(
    records: Sequence[Recorded],
    heads: EnsembleHeads,
    experts: Mapping[str, Expert],
    identities: Mapping[str, str],
    settings: RunSettings | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Return "gate" and "expert:NAME" -> task -> what they say of the records, as `EnsembleHeads.predict_proba` does.

    Parameters and errors are those of `predict`; NaN where nobody answers.
    """
    features, signal = features_of(records, heads, experts, identities, settings)
    alone = heads.expert_predictions(features, gate_signal=signal)
    return {
        "gate": dict(heads.predict_proba(features, gate_signal=signal)),
        **{f"expert:{name}": dict(alone[name]) for name in features},
    }


def features_of(
    records: Sequence[Recorded],
    heads: EnsembleHeads,
    experts: Mapping[str, Expert],
    identities: Mapping[str, str],
    settings: RunSettings | None = None,
) -> tuple[dict[str, Features], np.ndarray | None]:
    """Return each expert's vectors of the records, and what the gate sees of the signal (None: nothing of it).

    Parameters and errors are those of `predict`.
    """
    batch, answerer = _in_memory(records, heads), Answerer(heads, experts, identities, settings, n_records=len(records))
    with torch_threads((settings or RunSettings()).threads):
        return answerer.features(answerer.prepare(batch)), batch.signal


def _in_memory(records: Sequence[Recorded], heads: EnsembleHeads) -> RecordBatch:
    batch = RecordBatch([one.name for one in records], [None] * len(records), [list(one.warnings) for one in records])
    add_signals(batch, dict(enumerate(records)), heads)
    return batch
