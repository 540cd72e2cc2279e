"""Ctrl-C at a real process: one line that says how to go on, exit code 130, and the next run finishes the work."""

import signal
import subprocess
import sys
import time

import pytest

PATIENCE_S = 60


def _listen_to_ctrl_c():
    """Undo what a shell does to background jobs: they, and what they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("debug", [[], pytest.param(["--debug"], marks=pytest.mark.slow)])
def test_ctrl_c_says_how_to_go_on(toy_study, debug):
    command = [sys.executable, "-m", "pipeline.cli", *debug, "embed", "--expert", "ecgfm", "--workers", "1"]
    store = toy_study / "embeddings/ecgfm.zarr"
    with subprocess.Popen(
        command,
        cwd=toy_study,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_listen_to_ctrl_c,  # noqa: PLW1509 - no thread of this test holds a lock
    ) as running:
        deadline = time.monotonic() + PATIENCE_S
        while not store.exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130, said
    assert said.rstrip().endswith("error: interrupted; the same command goes on where it stopped")
    assert ("Traceback" in said) == bool(debug)
    done = subprocess.run(command, cwd=toy_study, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
