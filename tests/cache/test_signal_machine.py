"""signals.zarr against a dictionary: write, stop in the middle, damage, lose, repair and verify in any order."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cache import signals as signals_module
from cache.signals import MISSING, N_SAMPLES, create_signals, open_signals
from cache.upkeep.checks import repair_signals, signal_faults

SHARD_RECORDS = 16
ARRAYS = ("signals", "valid", "rate_hz", "digest")
"""In the order in which a shard's files are written."""
SOME = st.integers(0, 1_000_000)
"""Chooses one of several; taken modulo their number."""


def content(shard, n_rows, seed):
    """Records of different lengths and rates, one of them unreadable."""
    rng = np.random.default_rng([shard, seed])
    valid = rng.integers(1, N_SAMPLES + 1, n_rows)
    valid[rng.integers(n_rows)] = 0
    rates = np.where(valid > 0, rng.choice([250.0, 360.0, 500.0], n_rows), 0.0)
    signals = np.full((n_rows, 12, N_SAMPLES), MISSING, dtype=np.int16)
    for row, n in enumerate(valid):
        signals[row, :, :n] = (np.arange(n) * (row + 1) + seed) % 3000
    return signals, valid, rates


class SignalMachine(RuleBasedStateMachine):
    """The model: the seed of what each shard holds, and which shards somebody has damaged."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="signal-machine-"))
        self.path = self.folder / "signals.zarr"
        self.n_records, self.written, self.damaged = 0, {}, set()

    @property
    def pending(self):
        return [shard for shard in range(-(-self.n_records // SHARD_RECORDS)) if shard not in self.written]

    def write(self, shard, seed):
        store = open_signals(self.path, mode="r+")
        rows = store.rows_of(shard)
        store.write_shard(shard, *content(shard, rows.stop - rows.start, seed))

    @initialize(n=st.integers(1, 60))
    def make(self, n):
        self.n_records = n
        create_signals(self.path, n, SHARD_RECORDS)

    @precondition(lambda self: self.pending)
    @rule(which=SOME, seed=st.integers(0, 9))
    def shard_is_written(self, which, seed):
        shard = self.pending[which % len(self.pending)]
        self.write(shard, seed)
        self.written[shard] = seed

    @precondition(lambda self: self.pending)
    @rule(which=SOME, seed=st.integers(0, 9), n_files=st.integers(0, 3))
    def write_stops_in_the_middle(self, which, seed, n_files):
        left = [n_files]

        def stopping(step):
            def stopped(*arguments):
                if not left[0]:
                    raise OSError(28, "No space left on device")
                left[0] -= 1
                return step(*arguments)

            return stopped

        with pytest.MonkeyPatch.context() as patch:
            for name in ("write_durably", "write_shard"):
                patch.setattr(signals_module, name, stopping(getattr(signals_module, name)))
            with pytest.raises(OSError, match="No space"):
                self.write(self.pending[which % len(self.pending)], seed)

    @precondition(lambda self: self.written)
    @rule(which=SOME, array=st.sampled_from(ARRAYS), at=SOME, cut=st.booleans())
    def file_is_damaged(self, which, array, at, cut):
        shard, file = self._file(which, array)
        raw = bytearray(file.read_bytes() if file.is_file() else b"")
        if not raw:
            return
        if cut:
            raw = raw[: at % len(raw)]
        else:
            raw[at % len(raw)] ^= 1 << (at % 8)
        file.write_bytes(raw)
        self.damaged.add(shard)

    @precondition(lambda self: self.written)
    @rule(which=SOME, array=st.sampled_from(ARRAYS))
    def file_is_lost(self, which, array):
        shard, file = self._file(which, array)
        if not file.is_file():
            return
        file.unlink()
        if array == "digest":  # then the shard counts no longer
            self.written.pop(shard)
            self.damaged.discard(shard)
        else:
            self.damaged.add(shard)

    def _file(self, which, array):
        shard = sorted(self.written)[which % len(self.written)]
        axes = {"signals": 2, "digest": 1}.get(array, 0)
        return shard, self.path.joinpath(array, "c", str(shard), *["0"] * axes)

    @rule()
    def repair(self):
        named = {fault.shard for fault in signal_faults(self.path) if not fault.missing}
        lines = list(repair_signals(self.path))
        assert sorted(int(line.split(" shard ")[1].split()[0]) for line in lines) == sorted(named)
        assert named <= self.damaged
        for shard in named:
            self.written.pop(shard, None)
            self.damaged.discard(shard)

    @invariant()
    def verify_names_what_is_not_as_it_was_written(self):
        if not self.n_records:
            return
        faults = list(signal_faults(self.path))
        wrong = {fault.shard for fault in faults if not fault.missing}
        assert wrong <= self.damaged
        assert {fault.shard for fault in faults if fault.missing} == set(self.pending)
        store = open_signals(self.path)
        for shard, seed in self.written.items():
            rows = store.rows_of(shard)
            if shard not in wrong:
                assert store.written(shard)
                signals, valid, rates = content(shard, rows.stop - rows.start, seed)
                np.testing.assert_array_equal(store.read_uv(rows), signals)
                np.testing.assert_array_equal(store.valid_of(rows), valid)
                np.testing.assert_array_equal(store.rates_of(rows), rates)

    def teardown(self):
        """Repair and finish the store: it has the bytes of one that nothing ever happened to."""
        if self.n_records:
            list(repair_signals(self.path))
            self.damaged.clear()
            store = open_signals(self.path)
            finished = [shard for shard in range(store.n_shards) if store.written(shard)]
            for shard in set(range(store.n_shards)) - set(finished):
                self.write(shard, 0)
            digest = open_signals(self.path).content_digest()
            fresh = create_signals(self.folder / "fresh.zarr", self.n_records, SHARD_RECORDS)
            for shard in range(store.n_shards):
                rows = fresh.rows_of(shard)
                seed = self.written[shard] if shard in finished else 0
                fresh.write_shard(shard, *content(shard, rows.stop - rows.start, seed))
            assert fresh.content_digest() == digest
        shutil.rmtree(self.folder)


def test_signals_agree_with_a_dictionary_whatever_happens_to_them():
    run_state_machine_as_test(
        SignalMachine,
        settings=settings(
            max_examples=8,
            stateful_step_count=12,
            phases=[Phase.generate],
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
