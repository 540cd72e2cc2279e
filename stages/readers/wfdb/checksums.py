"""Whether the samples of a record are those that its header was written for."""

from __future__ import annotations

import operator

import numpy as np

from stages.readers.wfdb.header import Header

MAX_WRONG_SUMS = 2
SUMMED_TOGETHER = 50


def as_stated(header: Header, samples: np.ndarray, n_samples: int, *, longer: bool) -> bool:
    """Whether the samples are those the header was written for, as far as those at hand can tell."""
    if len(samples) == n_samples and not longer and says_sums(header):
        return sums_agree(header, samples)
    stated = header.initials
    begins = None in stated or not any(stated) or any(map(operator.eq, samples[0].tolist(), stated))
    return begins and not longer


def says_sums(header: Header) -> bool:
    """Whether checksums are stated, if only of some leads; all zero means that they are not."""
    return any(header.checksums)


def sums_agree(header: Header, samples: np.ndarray) -> bool:
    """Whether the leads of samples [time, lead] have their checksums."""
    # Adding long rows is several times faster than columns. A checksum counts modulo 65536, as int16 does.
    n_samples, n_signals = samples.shape
    whole = n_samples // SUMMED_TOGETHER * SUMMED_TOGETHER
    sums = np.add.reduce(samples[:whole].reshape(-1, SUMMED_TOGETHER * n_signals), axis=0, dtype=np.int16)
    sums = np.add.reduce(sums.reshape(-1, n_signals), axis=0, dtype=np.int16)
    if whole < n_samples:
        sums += np.add.reduce(samples[whole:], axis=0, dtype=np.int16)
    return mostly_stated(header, sums.tolist())


def mostly_stated(header: Header, sums: list[int]) -> bool:
    """Whether nearly all sums are those that the header states. Editors of headers leave single ones wrong."""
    pairs = [(total, stated) for total, stated in zip(sums, header.checksums, strict=True) if stated is not None]
    wrong = sum((total - stated) % 65536 != 0 for total, stated in pairs)
    return wrong <= MAX_WRONG_SUMS and 2 * wrong < len(pairs)
