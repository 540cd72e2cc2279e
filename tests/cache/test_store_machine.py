"""The embedding store against a dictionary: claim, write, kill, grow, damage, repair and verify in any order."""

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

from cache.claims import Claims
from cache.embeddings import open_embeddings
from cache.errors import StoreError
from cache.storage import writing
from cache.upkeep.checks import embedding_faults, repair_embeddings
from cache.upkeep.resume import resume_or_create
from tests.cache.store_processes import SHARD_RECORDS, Workers, content, grow, identity, layout, prefix, write

ARRAYS = ("layers", "embedding", "output", "segments", "std", "has_vector", "done")
SEEDS = st.integers(0, 9)
SOME = st.integers(0, 1_000_000)
"""Chooses one of several; taken modulo their number."""


class StoreMachine(RuleBasedStateMachine):
    """The model: what each shard holds, and which shards have something wrong.

    `written` maps a shard that counts to the seed of its content. Of `partial` ones an interrupted write left files;
    `flagless` ones count no longer, because their flags or a file are gone; `unreadable` ones count, and do not read.
    """

    workers: Workers

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.path, self.state = self.folder / "toy.zarr", self.folder / "state"
        self.version, self.n_records = 1, 0
        self.written: dict[int, int] = {}
        self.partial: set[int] = set()
        self.flagless: set[int] = set()
        self.unreadable: set[int] = set()

    # What the model says

    @property
    def n_shards(self):
        return -(-self.n_records // SHARD_RECORDS)

    @property
    def pending(self):
        return [shard for shard in range(self.n_shards) if shard not in self.written or shard in self.flagless]

    @property
    def faulty(self):
        return self.partial | self.flagless | self.unreadable

    def rows(self, shard):
        return min(SHARD_RECORDS, self.n_records - shard * SHARD_RECORDS)

    def forget(self, shard):
        self.written.pop(shard, None)
        for group in (self.partial, self.flagless, self.unreadable):
            group.discard(shard)

    # What is done to the store

    @initialize(n=st.integers(1, 14), first=st.lists(SEEDS, max_size=4))
    def make(self, n, first):
        self.n_records = n
        grow(self.path, self.version, n)
        for shard, seed in zip(range(self.n_shards), first, strict=False):
            write(self.path, shard, seed)
            self.written[shard] = seed

    @precondition(lambda self: self.pending)
    @rule(which=SOME, seed=SEEDS)
    def claim_and_write(self, which, seed):
        shard = self.pending[which % len(self.pending)]
        claims = Claims(self.path, self.state)
        with claims.claim(shard) as ours:
            assert ours
            write(self.path, shard, seed)
        claims.close()
        self.forget(shard)
        self.written[shard] = seed

    @rule(which=SOME)
    def rival_claims_and_is_killed(self, which):
        shard = which % self.n_shards
        pid = self.workers.ask(do="hold", path=self.path, state=self.state, shard=shard)
        claims = Claims(self.path, self.state)
        with claims.claim(shard) as ours:
            assert not ours
        with claims.claim(shard + 1) as ours:
            assert ours
        assert self.workers.ask(do="end", pid=pid) == "ended"
        with claims.claim(shard) as ours:
            assert ours
        claims.close()

    @precondition(lambda self: self.pending)
    @rule(which=SOME, seed=SEEDS, kill_at=st.integers(0, 6), halfway=st.booleans())
    def write_is_killed(self, which, seed, kill_at, halfway):
        shard = self.pending[which % len(self.pending)]
        answer = self.workers.ask(do="write", path=self.path, shard=shard, seed=seed, kill_at=kill_at, halfway=halfway)
        assert answer == "killed"
        self._stopped_at(shard, kill_at)

    @precondition(lambda self: self.pending)
    @rule(which=SOME, seed=SEEDS, file=st.integers(0, 6))
    def write_meets_a_full_disk(self, which, seed, file):
        shard, left = self.pending[which % len(self.pending)], [file]
        whole = writing.write_pieces

        def full(handle, pieces):
            if not left[0]:
                raise OSError(28, "No space left on device")
            left[0] -= 1
            whole(handle, pieces)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writing, "write_pieces", full)
            with pytest.raises(OSError, match="No space"):
                write(self.path, shard, seed)
        self._stopped_at(shard, file)

    def _stopped_at(self, shard, n_files):
        """Note a write of a pending shard of which so many files were done: none of them are the flags."""
        flags_were_lost = shard in self.flagless and shard in self.written
        if n_files:
            self.partial.add(shard)
        if flags_were_lost:  # its old files are still there, under those that were done
            self.partial.add(shard)
            self.written.pop(shard)
            self.flagless.discard(shard)
            self.unreadable.discard(shard)

    @precondition(lambda self: self.n_records < 40)
    @rule(more=st.integers(1, 9))
    def cohort_grows(self, more):
        self._grow(self.n_records + more)
        grow(self.path, self.version, self.n_records)

    @precondition(lambda self: self.n_records < 40)
    @rule(more=st.integers(1, 9), kill_at=st.integers(0, 12))
    def growth_is_killed_and_done_again(self, more, kill_at):
        n = self.n_records + more
        answer = self.workers.ask(do="grow", path=self.path, version=self.version, n_records=n, kill_at=kill_at)
        assert answer in ("killed", "finished")
        self._grow(n)
        grow(self.path, self.version, n)

    def _grow(self, n):
        """Note that the shards that were full and count stay, and nothing else."""
        full = self.n_records // SHARD_RECORDS
        for shard in range(self.n_shards):
            if shard >= full or shard in self.pending:
                self.forget(shard)
        self.n_records = n

    @rule()
    def run_again_with_nothing_changed(self):
        store, why = resume_or_create(self.path, layout(self.n_records), identity(self.version, self.n_records), prefix)
        assert why == ""
        assert store.pending() == self.pending

    @precondition(lambda self: self.version == 1 and not self.pending)
    @rule()
    def expert_changes(self):
        self.version += 1
        store, why = resume_or_create(self.path, layout(self.n_records), identity(self.version, self.n_records), prefix)
        assert why == "changed: version"
        assert len(store.pending()) == self.n_shards
        for shard in range(self.n_shards):
            self.forget(shard)

    @precondition(lambda self: self.written)
    @rule(which=SOME, array=st.sampled_from(ARRAYS), at=SOME, cut=st.booleans())
    def file_is_damaged(self, which, array, at, cut):
        shard = sorted(self.written)[which % len(self.written)]
        if shard in self.faulty:
            return
        file = self._file(array, shard)
        raw = bytearray(file.read_bytes())
        if cut:
            raw = raw[: at % len(raw)]
        else:
            raw[at % len(raw)] ^= 1 << (at % 8)
        file.write_bytes(raw)
        (self.flagless if array == "done" else self.unreadable).add(shard)

    @precondition(lambda self: self.written)
    @rule(which=SOME, array=st.sampled_from(ARRAYS))
    def file_is_lost(self, which, array):
        shard = sorted(self.written)[which % len(self.written)]
        if shard in self.faulty:
            return
        self._file(array, shard).unlink()
        self.flagless.add(shard)

    def _file(self, array, shard):
        store = open_embeddings(self.path)
        return next(file for file in store.shard_files(shard) if file.relative_to(self.path).parts[0] == array)

    @precondition(lambda self: self.faulty)
    @rule()
    def repair(self):
        lines = list(repair_embeddings(self.path))
        dropped = sorted(int(line.split(" shard ")[1].split()[0]) for line in lines)
        assert dropped == sorted(self.faulty)
        for shard in dropped:
            self.forget(shard)

    @rule(which=SOME, at=SOME)
    def metadata_are_damaged_and_repaired(self, which, at):
        file = sorted(self.path.rglob("zarr.json"))[which % 8]
        raw = bytearray(file.read_bytes())
        raw[at % len(raw)] ^= 1 << (at % 8)
        file.write_bytes(raw)
        with pytest.raises(StoreError):
            open_embeddings(self.path)
        self.repair_metadata_and_shards()

    def repair_metadata_and_shards(self):
        lines = list(repair_embeddings(self.path))
        assert "restored" in lines[0]
        assert len(lines) == 1 + len(self.faulty)
        for shard in sorted(self.faulty):
            self.forget(shard)

    # What always holds

    @invariant()
    def exactly_the_written_shards_count(self):
        if self.n_records:
            store = open_embeddings(self.path)
            assert len(store) == self.n_records
            assert store.pending() == self.pending

    @invariant()
    def what_counts_reads_as_it_was_written_or_not_at_all(self):
        if not self.n_records:
            return
        store = open_embeddings(self.path)
        for shard in set(range(self.n_shards)) - set(self.pending):
            expected = content(shard, self.rows(shard), self.written[shard]).arrays()
            expected = {**expected, "has_vector": ~np.isnan(expected["embedding"]).all(axis=1)}
            refused = set()
            for name in ARRAYS[:-1]:
                try:
                    np.testing.assert_array_equal(store.read(name, store.rows_of(shard)), expected[name])
                except StoreError:
                    refused.add(shard)
            assert refused == {shard} & self.unreadable

    @invariant()
    def verify_names_exactly_the_faulty_shards(self):
        if self.n_records:
            faults = list(embedding_faults(self.path))
            assert {fault.shard for fault in faults if not fault.missing} == self.faulty
            assert {fault.shard for fault in faults if fault.missing} == set(self.pending) - self.faulty

    def teardown(self):
        """Finish the store: it has the bytes of one that nothing ever happened to."""
        if self.n_records:
            list(repair_embeddings(self.path))
            for shard in self.faulty:
                self.written.pop(shard, None)
            for shard in range(self.n_shards):
                if shard not in self.written:
                    write(self.path, shard, 0)
            fresh = self.folder / "fresh" / "toy.zarr"
            grow(fresh, self.version, self.n_records)
            for shard in range(self.n_shards):
                write(fresh, shard, self.written.get(shard, 0))
            assert files_of(self.path) == files_of(fresh)
            left = [file.name for file in self.folder.iterdir() if file.name.startswith(".")]
            assert [name for name in left if not name.endswith(".kept.zarr")] == []
            assert len(left) == self.version - 1  # the store that another version replaced
        shutil.rmtree(self.folder)


def files_of(path):
    return {file.relative_to(path): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.slow
def test_a_store_agrees_with_a_dictionary_whatever_happens_to_it():
    workers = Workers()
    machine = type("StoreMachine", (StoreMachine,), {"workers": workers})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=12,
                stateful_step_count=20,
                phases=[Phase.generate],  # a failure is told as it was found: making it smaller takes minutes
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        workers.close()
