"""Makes and judges rows of signals.zarr, a few at a time: the one maker that `ingest` and `predict` have.

Memory for the rows is made once and used over and over. Not here: how one recording becomes microvolts (standardise.py,
whole_microvolts.py), which records a cohort has, how rows are packed and written (stages/ingest).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from cache.errors import InputError
from cache.signals import LEADS, MISSING, N_SAMPLES, RATE_HZ
from stages.readers.amplitude import Amplitude, amplitude_note
from stages.readers.at_500_hz import row_at_500_hz
from stages.readers.lead_names import LeadNames
from stages.readers.limbs import SHOWN, SlopeProducts, derive_limb_leads
from stages.readers.pacing import count_pace_spikes
from stages.readers.quality import Quality
from stages.readers.recording import SECONDS_KEPT, Counts, Recording
from stages.readers.standard_leads import keep_standard, scaled
from stages.readers.standardise import standardise
from stages.readers.whole_microvolts import Placed, finish, place

QUALITY = {
    "sampling_rate_hz": "float64",
    "n_samples": "Int64",
    "nan_fraction": "float64",
    "flat_leads": "object",
    "missing_leads": "object",
    "clipped_fraction": "float64",
    "status": "object",
    "reason": "object",
    "derived_leads": "object",
    "limb_swap": "object",
    "pace_spikes": "Int64",
    "notes": "object",
}
"""Columns that reading a record gives, and their dtypes."""
LONGEST_REASON = 300


@dataclass(frozen=True)
class RowOptions:
    """What a study asks of its rows, and what `predict` has to repeat.

    Attributes
    ----------
    derive_leads
        Compute III, aVR, aVL and aVF from I and II where a file lacks them.
    pace_spikes
        Count pacemaker spikes.
    seconds
        What is kept of a record from its beginning; None: all.
    lead_names
        The study's own spellings: (name in the files, standard lead).
    scale
        What amplitudes are multiplied by.
    amplitude
        What a stored millivolt is: one, or one standard deviation.
    """

    derive_leads: bool = False
    pace_spikes: bool = False
    seconds: float | None = SECONDS_KEPT
    lead_names: LeadNames = ()
    scale: float = 1.0
    amplitude: Amplitude = "mV"

    def to_json(self) -> dict[str, Any]:
        """Return what a table keeps; tables of millivolts stay as they were before other units were known."""
        kept = asdict(self)
        if self.amplitude == "mV":
            del kept["amplitude"]
        return kept

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> RowOptions:
        """Return the options that a table or a fit has kept; what they do not know is as usual."""
        known = {name: kept[name] for name in cls.__dataclass_fields__ if name in kept}
        known["lead_names"] = tuple((name, lead) for name, lead in known.get("lead_names", ()))
        return cls(**known)


class MadeRows(NamedTuple):
    """What is known of some rows.

    Attributes
    ----------
    valid, rate_hz
        int32 and float64 [row]: samples and rate; 0 where the record could not be read.
    columns
        Values of each row in the order of `QUALITY`; those of `limb_swap` follow from `products`.
    products
        As `SlopeProducts` gives them, float32 [row, 8, 8].
    """

    valid: np.ndarray
    rate_hz: np.ndarray
    columns: list[tuple[Any, ...]]
    products: np.ndarray


Read = Callable[[], Recording | Counts]
"""Reads one record, or raises InputError with the reason why it cannot."""


class _Noted(NamedTuple):
    """What a reader says of a record beside its samples: notes, and whether its limb leads are to be computed."""

    notes: tuple[str, ...] = ()
    derive_leads: bool = False


_NOTHING = _Noted()


class RowMaker:
    """Memory for `size` rows, and what makes them.

    Examples
    --------
    >>> recording = Recording(np.ones((2, 1000)), ("I", "II"), 100.0, 1000)
    >>> maker = RowMaker(1)
    >>> made = maker.make(0, [lambda: recording], RowOptions(derive_leads=True))
    >>> made.valid, made.rate_hz, maker.rows[0, 2, :2]
    (array([1000], dtype=int32), array([100.]), array([0, 0], dtype=int16))
    """

    def __init__(self, size: int) -> None:
        self.rows = np.empty((size, len(LEADS), N_SAMPLES), dtype=np.int16)
        """int16 microvolts [row, lead, time]; the time axis grows by whole pieces of 5000 samples."""
        self._slope_products = SlopeProducts()

    def keep(self, signals_uv: np.ndarray) -> None:
        """Take over rows that are there already, int16 [row, 12, time], as the first ones."""
        self._make_room(signals_uv.shape[2])
        self.rows[: len(signals_uv), :, : signals_uv.shape[2]] = signals_uv
        self.rows[: len(signals_uv), :, signals_uv.shape[2] :] = MISSING

    def make(self, first: int, reads: Sequence[Read], options: RowOptions) -> MadeRows:
        """Read records into the rows from `first` on, and judge them."""
        in_millivolts = options.amplitude == "mV"
        noted_of: list[_Noted] = [_NOTHING] * len(reads)
        taken = [self._take(first + k, read, options, noted_of, k) for k, read in enumerate(reads)]
        judged = list(self._judged(first, taken))
        rows = self.rows[first : first + len(reads)]
        facts = [
            _facts(row, one, derive_leads=options.derive_leads or noted.derive_leads)
            for row, one, noted in zip(rows, judged, noted_of, strict=True)
        ]
        valid = np.array([one.get("valid", 0) for one in facts], dtype=np.int32)
        rates = np.array([one.get("sampling_rate_hz", 0.0) for one in facts], dtype=np.float64)
        shown = _at_500_hz(rows, valid, rates)
        n_spikes = count_pace_spikes(shown) if options.pace_spikes else [None] * len(facts)
        for row, one, noted in zip(rows, facts, noted_of, strict=True):
            if one["status"] == "ok":
                odd = amplitude_note(row[:, : one["valid"]], one["sampling_rate_hz"]) if in_millivolts else None
                one["notes"] = noted.notes if odd is None else (*noted.notes, odd)
        columns = list(map(_in_order, facts, n_spikes))
        # Leads that each have a scale of their own break Einthoven's equations without being exchanged.
        products = self._slope_products(shown) if in_millivolts else np.zeros_like(no_products(len(rows)))
        return MadeRows(valid, rates, columns, products)

    def _take(
        self, k: int, read: Read, options: RowOptions, noted: list[_Noted], n: int
    ) -> Placed | Quality | Exception:
        """Read a record into row `k`; if it is of the usual kind its counts lie there then, and are not finished.

        What was left out or assumed of it becomes the `n`-th of `noted`.
        """
        try:
            recording = scaled(keep_standard(read(), options.lead_names), options.scale)
            noted[n] = _Noted(recording.notes, isinstance(recording, Recording) and recording.derive_leads)
            if isinstance(recording, Counts):
                placed = place(recording, self.rows[k, :, :N_SAMPLES], options.seconds)
                if placed is not None:
                    self.rows[k, :, N_SAMPLES:] = MISSING
                    return placed
            signals_uv, quality = standardise(recording, options.seconds)
        # One record must not stop the run, whatever is wrong with it; the reason names what happened.
        except Exception as error:  # noqa: BLE001
            return error
        self._make_room(quality.valid)
        self.rows[k, :, : quality.valid] = signals_uv
        self.rows[k, :, quality.valid :] = MISSING
        return quality

    def _make_room(self, n_samples: int) -> None:
        lacking = -(-(n_samples - self.rows.shape[2]) // N_SAMPLES) * N_SAMPLES
        if lacking > 0:
            self.rows = np.pad(self.rows, ((0, 0), (0, 0), (0, lacking)), constant_values=MISSING)

    def _judged(self, first: int, taken: list[Placed | Quality | Exception]) -> Iterator[Quality | Exception]:
        """Finish the rows of what was read, neighbours of the usual kind together."""
        for usual, group in itertools.groupby(taken, lambda one: isinstance(one, Placed)):
            members = list(group)
            if usual:
                placed = [one for one in members if isinstance(one, Placed)]
                yield from finish(placed, self.rows[first : first + len(members), :, :N_SAMPLES])
            else:
                yield from (one for one in members if not isinstance(one, Placed))
            first += len(members)


def _at_500_hz(rows: np.ndarray, valid: np.ndarray, rate_hz: np.ndarray) -> np.ndarray:
    """Return what detectors see of rows, int16 [row, 12, 5000]: the rows themselves where that is what they are."""
    if ((rate_hz == RATE_HZ) | (valid == 0)).all():
        return rows[:, :, :N_SAMPLES]
    shown = np.full((len(rows), len(LEADS), N_SAMPLES), MISSING, dtype=np.int16)
    for out, row, n_samples, rate in zip(shown, rows, valid.tolist(), rate_hz.tolist(), strict=True):
        if n_samples:
            out[:] = row_at_500_hz(row[:, :n_samples], rate)
    return shown


def _in_order(facts: dict[str, Any], n_spikes: int | None) -> tuple[Any, ...]:
    """Put what is known of a record into the order of `QUALITY`."""
    if facts["status"] == "ok":
        facts["pace_spikes"] = n_spikes
    return tuple(map(facts.get, QUALITY))


def _facts(row: np.ndarray, judged: Quality | Exception, *, derive_leads: bool) -> dict[str, Any]:
    if isinstance(judged, Exception):
        row.fill(MISSING)
        return {"status": "bad", "reason": _reason(judged)}
    derived = derive_limb_leads(row, judged.missing_leads) if derive_leads and judged.missing_leads else ()
    return {**judged._asdict(), "status": "ok", "derived_leads": derived}


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, InputError) else f"unforeseen {type(error).__name__}: {error}"
    return " ".join(text.split())[:LONGEST_REASON]


def no_products(n_rows: int) -> np.ndarray:
    """Return room for the products of some rows, float32 [row, 8, 8]."""
    return np.empty((n_rows, len(SHOWN), len(SHOWN)), dtype=np.float32)
