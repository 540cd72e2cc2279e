"""Predicting records into files, part by part: parts are claimed, killed runs go on, and the files come out the same.

Parts lie in a folder beside the outcome until all are there. What a part holds depends on the list of records and the
fit alone, never on who makes it. Not here: the bytes (tables.py), what a fit says of a batch (answering.py).
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path
from typing import Any

from cache.claims import Claims
from cache.errors import MissingFileError, StoreError
from cache.files import write_text
from cache.fingerprint import file_digest, fingerprint, text_digest
from stages.experts.run import RunSettings, torch_threads
from stages.heads import EnsembleHeads
from stages.heads.decisions.answers import DECISION_FILES
from stages.predict.ahead import prepared_ahead
from stages.predict.answering import Answerer, check_identities, note_missing
from stages.predict.batches import ListedFiles, RecordSource, StudyRecords, row_options
from stages.predict.inputs import RowFile, listed, write_rows
from stages.predict.settings import PredictPaths, PredictSettings, PredictSummary
from stages.predict.tables import Answered, check_out, identity_of, merge, part_tables, unreadable_of, write_part

Progress = Callable[[int], None]
VERSION = "1"
"""Raised whenever the same records and fit would give other files."""
MOST_PARTS = 10_000
N_NAMED = 5
"""Unreadable records that a summary names; the file of warnings has all."""
PLAN, INPUTS, SUFFIX = "plan.json", "inputs.parquet", ".arrow"


class FilePredictor:
    """One run of `predict` into files, as each of its processes sees it.

    Raises
    ------
    UsageError
        `paths.out` cannot be written to.
    MissingFileError, StoreError
        No fit, or stores that do not belong together.
    FingerprintError
        An expert is not the one that the heads were fitted on.
    """

    def __init__(self, settings: PredictSettings, paths: PredictPaths) -> None:
        if paths.out is None:
            raise StoreError("there is no file to predict into: set PredictPaths.out")
        check_out(paths.out)
        self.settings, self.paths, self.out = settings, paths, paths.out
        self.heads = EnsembleHeads.load(paths.heads)
        check_identities(self.heads, settings.identities)
        self.work = self.out.with_name(f".{self.out.name}.parts")

    # ---- what is to be done ------------------------------------------------------------------------------------------

    @cached_property
    def fit(self) -> str:
        """Digest of the fit's files."""
        files = [self.paths.heads / name for name in ("config.json", "heads.safetensors", *DECISION_FILES)]
        return text_digest(f"{file.name} {file_digest(file)}" for file in files if file.is_file())

    def prepare(self, notes: list[str] | None = None) -> list[int]:
        """List the records, make or resume the folder of parts, and return the parts that are pending."""
        with tempfile.TemporaryDirectory(prefix="ensemble-") as folder, closing(self._claims()) as claims:
            rows, notes = Path(folder) / INPUTS, [] if notes is None else notes
            digest = self._write_list(rows, notes)
            source = self._source(rows)
            notes += source.notes
            plan = self._plan(source, digest)
            if not plan["n_records"]:
                raise MissingFileError("no ECG is named: the manifest or the study has no row")
            self._settle(claims, rows, plan)
            return self.pending()

    def _write_list(self, path: Path, notes: list[str]) -> str:
        """Write down which files are meant; of a study its stores say it."""
        if self.paths.study is not None:
            return ""
        found = listed(self.paths.records, follow_links=self.settings.follow_links, notes=notes)
        return write_rows(found, path)

    def _settle(self, claims: Claims, rows: Path, plan: dict[str, Any]) -> None:
        """Go on with the parts of the same run, or start afresh when nobody works on another one."""
        while True:
            claims.share()
            if self._stored_plan() == plan:
                return
            claims.leave()
            if claims.try_acquire():
                self._start_afresh(rows, plan)
                claims.share()
                return
            time.sleep(claims.pause_s * random.uniform(0.5, 1.5))

    def _start_afresh(self, rows: Path, plan: dict[str, Any]) -> None:
        for left in self._part_files():
            left.unlink()
        for name in (PLAN, INPUTS):
            (self.work / name).unlink(missing_ok=True)
        if rows.is_file():
            shutil.move(rows, self.work / INPUTS)
        write_text(self.work / PLAN, json.dumps(plan, indent=2, sort_keys=True))

    def _plan(self, source: RecordSource, digest: str) -> dict[str, Any]:
        n = len(source)
        step = self.settings.records_at_once
        most = max(self.settings.records_per_part, -(-n // MOST_PARTS))
        made_from = self._made_from(source)
        return {
            "identity": fingerprint({**made_from, "inputs": digest, "n": n, "per_part": -(-most // step) * step}),
            "made_from": made_from,
            "inputs": digest,
            "n_records": n,
            "records_per_part": -(-most // step) * step,
        }

    def _made_from(self, source: RecordSource) -> dict[str, Any]:
        """Say what changes the numbers besides the list of files."""
        known = {*self.settings.experts, *source.cached_experts}
        return {
            "version": VERSION,
            "fit": self.fit,
            "experts": [name for name in self.heads.experts_ if name in known],  # which ones they are, the fit says
            "records_at_once": self.settings.records_at_once,
            "follow_links": self.settings.follow_links,
            **source.digests,
        }

    def _source(self, rows: Path) -> RecordSource:
        if self.paths.study is not None:
            return StudyRecords(self.paths.study, self.heads, [*self.settings.experts])
        return ListedFiles(RowFile(rows), self.heads, row_options(self.heads), follow_links=self.settings.follow_links)

    def _stored_plan(self) -> dict[str, Any] | None:
        try:
            plan: dict[str, Any] = json.loads((self.work / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return plan

    def _claims(self) -> Claims:
        self.work.parent.mkdir(parents=True, exist_ok=True)
        return Claims(self.work, self.work)

    # ---- parts -------------------------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What the folder of parts was made for.

        Raises
        ------
        StoreError
            There is none.
        """
        plan = self._stored_plan()
        if plan is None:
            raise StoreError(f"{self.work}: was removed while the run went on; run again")
        return plan

    @property
    def n_records(self) -> int:
        """Records in all."""
        return int(self.plan["n_records"])

    @property
    def n_parts(self) -> int:
        """Parts in all."""
        return -(-self.n_records // int(self.plan["records_per_part"]))

    def rows_of(self, part: int) -> slice:
        """Return the records of a part."""
        size = int(self.plan["records_per_part"])
        return slice(part * size, min((part + 1) * size, self.n_records))

    def pending(self, parts: Sequence[int] | None = None) -> list[int]:
        """Return which parts (of those named) are still to be made."""
        if parts is not None and len(parts) == 1:
            return [part for part in parts if not self._file_of(part).exists()]
        made = {int(file.stem) for file in self._part_files()}
        return [part for part in (range(self.n_parts) if parts is None else parts) if part not in made]

    def n_done(self) -> int:
        """Return how many records are in finished parts."""
        left = sum(rows.stop - rows.start for rows in map(self.rows_of, self.pending()))
        return self.n_records - left

    def _part_files(self) -> list[Path]:
        return [file for file in self.work.glob(f"*{SUFFIX}") if file.stem.isdigit()]

    def _file_of(self, part: int) -> Path:
        return self.work / f"{part:08d}{SUFFIX}"

    # ---- making them -------------------------------------------------------------------------------------------------

    def run(self, parts: Sequence[int] | None = None, progress: Progress | None = None) -> int:
        """Make what is missing of `parts` (None: of all), and return how many records this process has predicted.

        Parts that another process has claimed are waited for, and taken over if it dies.

        Raises
        ------
        StoreError
            The folder of parts is of another run.
        """
        n_computed, threads = 0, (self.settings.running or RunSettings()).threads
        with closing(self._claims()) as claims, torch_threads(threads):
            claims.share()
            while pending := self.pending(parts):
                before = n_computed
                n_computed += self._make(pending, claims, progress)
                if n_computed == before and self.pending(parts):
                    time.sleep(claims.pause_s * random.uniform(0.5, 1.5))
        return n_computed

    @cached_property
    def _worker(self) -> tuple[RecordSource, Answerer]:
        """Return the records and the fit with its experts, if they are those of the folder of parts."""
        source = self._source(self.work / INPUTS)
        if self._made_from(source) != self.plan["made_from"]:
            raise StoreError(
                f"{self.work}: a worker finds another fit, other weights, records or another version of this program; "
                "give all machines the same, and run again"
            )
        answerer = Answerer(
            self.heads,
            self.settings.experts,
            self.settings.identities,
            self.settings.running,
            cached=source.cached_experts,
            n_records=len(source),
        )
        return source, answerer

    def _make(self, pending: Sequence[int], claims: Claims, progress: Progress | None) -> int:
        """Make those of the pending parts that nobody has claimed, one after the other."""
        held: dict[int, ExitStack] = {}
        batches: list[Answered] = []
        n_computed, (source, answerer) = 0, self._worker
        with ExitStack() as stack:
            stack.callback(_give_back, held)
            wanted = self._claimed(pending, claims, held)
            ahead = stack.enter_context(closing(prepared_ahead(source, answerer, wanted)))
            for (part, last), prepared in ahead:
                answers = answerer.answer(prepared)
                note_missing(prepared.batch, self.heads, answers)
                prepared.batch.cached = {}
                prepared.batch.signal = None
                batches.append((prepared.batch, answers))
                n_computed += len(prepared.batch)
                if progress is not None:
                    progress(len(prepared.batch))
                if last:
                    write_part(part_tables(batches, self.heads), self._file_of(part))
                    batches = []
                    held.pop(part).close()
        return n_computed

    def _claimed(
        self, pending: Sequence[int], claims: Claims, held: dict[int, ExitStack]
    ) -> Iterator[tuple[tuple[int, bool], slice]]:
        """Give the batches of each part that is ours; claims it when its first batch is asked for."""
        step = int(self.plan["made_from"]["records_at_once"])
        for part in pending:
            claim = ExitStack()
            if not claim.enter_context(claims.claim(part)):
                continue
            held[part] = claim
            if self._file_of(part).exists():  # meanwhile, by whoever had claimed it
                held.pop(part).close()
                continue
            rows = self.rows_of(part)
            for start in range(rows.start, rows.stop, step):
                stop = min(start + step, rows.stop)
                yield (part, stop == rows.stop), slice(start, stop)

    # ---- the outcome -------------------------------------------------------------------------------------------------

    def finish(self) -> PredictSummary:
        """Put the parts together into the files of the outcome, and remove them.

        Raises
        ------
        StoreError
            Some parts are missing: all workers died.
        """
        plan = self.plan
        with closing(self._claims()) as claims:
            while not claims.try_acquire():
                time.sleep(claims.pause_s * random.uniform(0.5, 1.5))
            if self._stored_plan() != plan:  # another process of the same run was here first
                if identity_of(self.out) != plan["identity"]:
                    raise StoreError(f"{self.work}: another run has begun in it; run again, one after the other")
            else:
                self._put_together(plan["identity"])
            claims.remove()
        n_unreadable, lines = unreadable_of(self.out, N_NAMED)
        n_predicted = self.n_records - n_unreadable
        return PredictSummary(self.n_records, n_predicted, n_unreadable=n_unreadable, unreadable=lines)

    def _put_together(self, identity: str) -> None:
        if pending := self.pending():
            raise StoreError(
                f"{self.out}: {len(pending)} of {self.n_parts} parts are missing; the same command goes on"
            )
        merge(map(self._file_of, range(self.n_parts)), self.out, self.heads, fit=self.fit, identity=identity)
        (self.work / PLAN).unlink()
        for file in (*self._part_files(), self.work / INPUTS):
            file.unlink(missing_ok=True)


def _give_back(held: dict[int, ExitStack]) -> None:
    for claim in held.values():
        claim.close()
