"""Whose fault a failure is: the record's, which then has no vector, or the expert's code's, which stops the run.

Lives here: telling the two apart, and checking an expert's vectors against its spec. Not here: running experts (`run`).
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cache.errors import EnsembleError, ExpertCodeError, InputError
from stages.experts import contract
from stages.experts.contract import Encoding, Expert, ExpertSpec

SAME_FAULTS = 3
"""After this many consecutive records at which an expert's code failed alike, it is the code and not the records."""


@dataclass
class Faults:
    """Counts how often in a row an expert's code failed in the same way.

    Attributes
    ----------
    expert
        Name for the message.
    stop_after
        Consecutive records that fail alike before the run stops; a cohort of fewer records stops when all of it fails.

    Examples
    --------
    >>> faults = Faults("band-power", stop_after=1)
    >>> faults.failed("r1", InputError("records of 0.5 s are shorter than 1 s"))
    'records of 0.5 s are shorter than 1 s'
    """

    expert: str
    stop_after: int = SAME_FAULTS
    _last: str = ""
    _in_a_row: int = field(default=0)

    def succeeded(self) -> None:
        """Note that a record was prepared: what failed before it was a record's fault."""
        self._last, self._in_a_row = "", 0

    def failed(self, record_id: str, error: Exception) -> str:
        """Return in one line why a record has no vector.

        An `InputError` is what an expert says of a record that it cannot use. Anything else is code that failed: once
        for one odd record is accepted, at `stop_after` consecutive records at the same line it is not.

        Raises
        ------
        ExpertCodeError
            The code failed at the same line for `stop_after` consecutive records.
        EnsembleError
            An error that says nothing of a record, such as a wrong option; passed on as it is.
        MemoryError
            Passed on.
        """
        reason = first_line(error)
        if isinstance(error, InputError):
            return reason
        if isinstance(error, EnsembleError | MemoryError):
            raise error
        fault = f"{type(error).__name__} at {line_of_code(error)}"
        self._in_a_row = self._in_a_row + 1 if fault == self._last else 1
        self._last = fault
        if self._in_a_row >= self.stop_after:
            raise ExpertCodeError(
                f"expert '{self.expert}' fails at record '{record_id}': {fault}: {reason} (the same for "
                f"{self._in_a_row} records in a row); mend its code: nothing was stored for these records. A record "
                "that cannot be used is an InputError of cache.errors"
            ) from error
        return f"{fault}: {reason}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def line_of_code(error: Exception) -> str:
    """Return FILE:LINE of the expert's own code where an error came from, rather than of a library that it called."""
    # the check of lengths stands around every `prepare`, and is nobody's fault
    around = (contract.__file__, contract.LENGTH_CHECK)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if (f.filename, f.name) != around]
    if not frames:
        return "an unknown line"
    entered = frames[min(1, len(frames) - 1)].filename
    last = [frame for frame in frames if frame.filename == entered][-1]
    return f"{last.filename}:{last.lineno}"


def encode_checked(expert: Expert, x: Tensor, mask: Tensor | None = None) -> Encoding:
    """Encode [batch, ...] and compare what comes out with the spec.

    Raises
    ------
    ExpertCodeError
        `encode` fails, which is never a record's fault, or gives other widths than the spec says.
    EnsembleError, MemoryError, torch.OutOfMemoryError
        As `encode` raised them.
    """
    try:
        encoding = expert.encode(x, mask)
    except (EnsembleError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an expert's code may raise anything
        raise ExpertCodeError(
            f"expert '{expert.spec.name}' fails in encode with an input {list(x.shape)}: {type(error).__name__} at "
            f"{line_of_code(error)}: {first_line(error)}; mend its code, nothing was stored for these records"
        ) from error
    check_encoding(expert.spec, encoding)
    return encoding


def check_encoding(spec: ExpertSpec, encoding: Encoding) -> None:
    """Compare what `encode` gave for a batch with what the spec says.

    Raises
    ------
    ExpertCodeError
        Another number of layers, a layer, embedding or output of another width; names each of both sides.
    """
    layers = encoding.layers.unbind(1) if isinstance(encoding.layers, Tensor) else encoding.layers
    named = {f"layer_dims ({', '.join(spec.layer_names)})": (list(spec.layer_dims), [x.shape[-1] for x in layers])}
    named["embedding_dim"] = ([spec.embedding_dim], [encoding.embedding.shape[-1]])
    if encoding.tokens is not None or spec.tokens is not None:
        tokens = [] if encoding.tokens is None else [encoding.tokens.shape[-1]]
        named["tokens.dim"] = ([spec.tokens.dim] if spec.tokens else [], tokens)
    output = [] if encoding.output is None else [encoding.output.shape[-1]]
    named["output_dim"] = ([spec.output_dim] if spec.output_dim else [], output)
    for name, (stated, found) in named.items():
        if stated != found:
            raise ExpertCodeError(
                f"expert '{spec.name}': its spec says {name} {_widths(stated)}, its encode gives {_widths(found)}; "
                "correct the spec or the code"
            )


def _widths(values: list[int]) -> str:
    """Write widths in short: [768, 768, 768] -> 3 x 768."""
    if len(values) > 1 and len(set(values)) == 1:
        return f"{len(values)} x {values[0]}"
    return ", ".join(map(str, values)) or "none"
