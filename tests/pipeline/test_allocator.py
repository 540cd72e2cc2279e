"""One heap for all threads: counted by the C library itself, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pipeline.compute.allocator import VARIABLE

THREADS_ALLOCATE = """
import ctypes, re, sys, tempfile, threading
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def work(barrier):
    held = [libc.malloc(1000) for _ in range(1000)]
    barrier.wait()
    for block in held:
        libc.free(block)

def heaps():
    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=work, args=(barrier,)) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    with tempfile.NamedTemporaryFile("r") as file:
        libc.fopen.restype = ctypes.c_void_p
        stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        return len(re.findall("<heap nr=", file.read()))
"""
CALLED = THREADS_ALLOCATE + "from pipeline.compute.allocator import share_one_heap\nshare_one_heap()\nprint(heaps())"
OF_A_CHILD = """
import subprocess, sys
from pipeline.compute.allocator import share_one_heap
share_one_heap()
print(subprocess.run([sys.executable, "-c", sys.argv[1]], capture_output=True, text=True, check=True).stdout)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no heaps by thread")


def run(script: str, *arguments: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    return int(done.stdout)


def test_threads_share_one_heap_once_it_is_asked_for() -> None:
    assert run(THREADS_ALLOCATE + "print(heaps())") > 1
    assert run(CALLED) == 1


def test_processes_that_are_started_share_one_heap_too() -> None:
    assert run(OF_A_CHILD, THREADS_ALLOCATE + "print(heaps())") == 1


def test_what_the_environment_says_is_left_alone() -> None:
    assert run(CALLED, **{VARIABLE: "3"}) in (2, 3)
