import os
import signal
import subprocess
import sys
from contextlib import closing

from cache.claims import Claims

HOLDER = """
import sys, time
from pathlib import Path
from cache.claims import Claims
claims = Claims(Path(sys.argv[1]), Path(sys.argv[2]))
claims.share()
with claims.claim(7) as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


def hold_shard_7(tmp_path):
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "toy.zarr"), str(tmp_path)]
    holder = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    return holder


def test_a_claimed_shard_is_not_given_to_another_process(tmp_path):
    with hold_shard_7(tmp_path) as holder, closing(Claims(tmp_path / "toy.zarr", tmp_path)) as claims:
        with claims.claim(7) as ours, claims.claim(8) as other:
            assert (ours, other) == (False, True)
        holder.kill()


def test_a_claim_dies_with_its_owner(tmp_path):
    with closing(Claims(tmp_path / "toy.zarr", tmp_path)) as claims:
        with hold_shard_7(tmp_path) as holder:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
        with claims.claim(7) as ours:
            assert ours
        assert claims.try_acquire()
