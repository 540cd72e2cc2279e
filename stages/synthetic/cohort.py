"""One block of the cohort: its people, ECGs, laboratory results and signals, from (seed, block) alone.

Not here: files (write_mimic.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np

from stages.synthetic import mortality, noise
from stages.synthetic.beats import SyntheticBeats, draw_beats, mean_rr_ms
from stages.synthetic.heart import heart_vector, lead_fields, project, twelve_leads
from stages.synthetic.labels import BLOCK_RECORDS, Measurements, Report, draw_reports, report_lines
from stages.synthetic.labs import LabDraws, draw_times, lab_rows
from stages.synthetic.machine import measure
from stages.synthetic.mortality import Stays, covariates, draw_stays
from stages.synthetic.patients import Patients, Schedule, Traits, draw_people, draw_traits
from stages.synthetic.physiology import State, draw_potassium, draw_state
from stages.synthetic.variety import STREAM, vary_cart, vary_state, vary_waves
from stages.synthetic.waves import wave_tables

CHUNK_RECORDS = 50  # signals are made this many records at a time: about 200 MB at work
_STUDY_STRIDE = 6_180_339  # coprime to ten million: study numbers look drawn and never repeat
_T = TypeVar("_T")


class Defect(IntEnum):
    """What is broken about a record's files."""

    NONE = 0
    TRUNCATED = 1
    BAD_DATE = 2
    NO_FILE = 3


@dataclass(frozen=True)
class PatientBlock:
    """Everything about 200 consecutive records but their samples; rows follow patient and time."""

    people: Patients
    schedule: Schedule
    stays: Stays
    study_id: np.ndarray
    state: State
    traits: Traits  # [record]
    cart: noise.Cart
    draws: LabDraws
    labs: list[list[str]]
    defect: np.ndarray
    capitals: np.ndarray
    seed: int
    number: int
    variety: float

    @property
    def first_record(self) -> int:
        """Number, in the cohort, of the block's first record."""
        return self.number * BLOCK_RECORDS


@dataclass(frozen=True)
class Chunk:
    """The samples of consecutive records of one block, and the truth behind them."""

    rows: slice
    counts: np.ndarray  # int16 [record, 12, time], 200 per mV, MIMIC's lead order
    losses: noise.Losses
    measured: Measurements
    reports: list[list[str]]
    beats: SyntheticBeats
    clean_mv: np.ndarray  # [record, 12, time] before noise


def draw_block(seed: int, number: int, defect_rate: float = 0.0, variety: float = 0.0) -> PatientBlock:
    """Draw block `number` of the cohort with this seed, without its samples.

    Parameters
    ----------
    seed, number
        Every draw comes from these two, so a block is the same in a cohort of any size.
    defect_rate
        Share of records whose files are broken; the kinds take turns.
    variety
        How much further apart hearts, chests and carts lie than in the embedded cohort; 0: not at all.
    """
    rng = np.random.default_rng([seed, number, 0])
    people, schedule = draw_people(rng, draw_reports(rng), number)
    patient = schedule.patient
    traits = take(draw_traits(rng, people.male), patient)
    years = (schedule.time.astype("datetime64[Y]").astype(int) + 1970) - people.anchor_year[patient]
    potassium = draw_potassium(rng, patient)
    state = draw_state(rng, schedule.report, people.age_years[patient] + years, traits, potassium)
    known = covariates(people.age_years[patient] + years, schedule.report, potassium)
    stays = draw_stays(np.random.default_rng([seed, number, mortality.STREAM]), patient, schedule.time, known)
    draws = draw_times(rng, potassium)
    cart = noise.draw_cart(rng, schedule.report == Report.DATA_QUALITY)
    if variety:
        other = np.random.default_rng([seed, number, STREAM])
        state, cart = vary_state(other, state, variety), vary_cart(other, cart, variety)
    return PatientBlock(
        people=replace(people, death=stays.death),
        schedule=schedule,
        stays=stays,
        study_id=_study_ids(seed, number),
        state=state,
        traits=traits,
        cart=cart,
        draws=draws,
        labs=lab_rows(rng, draws, people.subject_id[patient], schedule.time, number * 100 * BLOCK_RECORDS),
        defect=_draw_defects(rng, number, defect_rate),
        capitals=rng.random(len(patient)) < 0.08,
        seed=seed,
        number=number,
        variety=variety,
    )


def draw_chunks(block: PatientBlock, n_records: int) -> Iterator[Chunk]:
    """Yield the samples of the block's first `n_records` records, `CHUNK_RECORDS` at a time."""
    for first in range(0, n_records, CHUNK_RECORDS):
        rows = slice(first, min(first + CHUNK_RECORDS, n_records))
        chunk = _draw_chunk(block, first)
        yield take_chunk(chunk, rows.stop - first)


def _draw_chunk(block: PatientBlock, first: int) -> Chunk:
    rows = slice(first, first + CHUNK_RECORDS)
    rng = np.random.default_rng([block.seed, block.number, 1 + first // CHUNK_RECORDS])
    state, cart = take(block.state, rows), take(block.cart, rows)
    beats = draw_beats(rng, state)
    tables = wave_tables(rng, state)
    if block.variety:
        other = np.random.default_rng([block.seed, block.number, STREAM + 1 + first // CHUNK_RECORDS])
        tables = vary_waves(other, tables, block.variety)
    eight = project(heart_vector(rng, state, beats, tables), lead_fields(take(block.traits, rows)))
    losses = noise.draw_losses(rng, state.report == Report.DATA_QUALITY)
    counts = noise.digitise(twelve_leads(noise.add_noise(rng, eight, cart)), losses)
    lost = (state.report == Report.DATA_QUALITY) & (rng.random(len(state.report)) < 0.15)
    measured = measure(rng, state, mean_rr_ms(beats, len(state.report)), tables, lost)
    male = block.people.male[block.schedule.patient[rows]]
    reports = report_lines(
        state.report, state.other, state.region, measured=measured, male=male, capitals=block.capitals[rows]
    )
    return Chunk(rows, counts, losses, measured, reports, beats, twelve_leads(eight))


def take(table: _T, rows: Any) -> _T:
    """Return the same dataclass of arrays with these rows of every array."""
    return type(table)(**{field.name: getattr(table, field.name)[rows] for field in fields(table)})  # type: ignore[arg-type]


def take_chunk(chunk: Chunk, n_records: int) -> Chunk:
    """Return the chunk's first records; `beats` stays whole."""
    head = slice(0, n_records)
    return Chunk(
        rows=slice(chunk.rows.start, chunk.rows.start + n_records),
        counts=chunk.counts[head],
        losses=take(chunk.losses, head),
        measured=take(chunk.measured, head),
        reports=chunk.reports[head],
        beats=chunk.beats,
        clean_mv=chunk.clean_mv[head],
    )


def _study_ids(seed: int, number: int) -> np.ndarray:
    index = number * BLOCK_RECORDS + np.arange(BLOCK_RECORDS)
    return 40_000_000 + (index * _STUDY_STRIDE + seed % 10_000_000 + 1_203_457) % 10_000_000


def _draw_defects(rng: np.random.Generator, number: int, rate: float) -> np.ndarray:
    start, end = (int(np.floor((number + k) * BLOCK_RECORDS * rate + 1e-9)) for k in (0, 1))
    defect = np.full(BLOCK_RECORDS, int(Defect.NONE))
    where = rng.permutation(BLOCK_RECORDS)[: end - start]
    defect[where] = 1 + np.arange(start, end)[: len(where)] % 3
    return defect
