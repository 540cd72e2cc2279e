"""In what order processes look for shards: each in its own on object storage, where a look costs requests."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from stages.embed.shard_pipeline import MISSES, Line, _Held
from stages.embed.stage import _in_turn


class Taken:
    """Claims of which others have every one; counts who asks."""

    def __init__(self, apart):
        self.apart, self.asked = apart, []

    @contextmanager
    def claim(self, shard):
        self.asked.append(shard)
        yield False


@pytest.mark.parametrize(("apart", "n_looks"), [(True, MISSES), (False, 200)])
def test_on_object_storage_a_process_soon_asks_anew_what_is_pending(apart, n_looks):
    line, claims = Line.__new__(Line), Taken(apart)
    line.claims, line.store = claims, SimpleNamespace(complete=lambda shard: False)
    with _Held(claims) as held:
        assert list(line._parts(list(range(200)), held)) == []
    assert claims.asked == list(range(n_looks))


def test_each_process_has_an_order_of_its_own_there_and_that_of_the_records_in_a_folder():
    pending = list(range(200))
    assert _in_turn(pending, Taken(apart=False)) == pending
    one, other = (_in_turn(pending, Taken(apart=True)) for _ in range(2))
    assert sorted(one) == sorted(other) == pending
    assert one != other
