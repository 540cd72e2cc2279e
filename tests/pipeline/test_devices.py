"""Which device a run's workers get. The number of GPUs is set by hand: what is tested is how they are shared out."""

import pytest
import torch

from cache.errors import UsageError
from pipeline.compute.devices import device_of
from pipeline.compute.workers import worker_count
from stages.devices import choose_device


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


@pytest.mark.usefixtures("three_gpus")
def test_workers_take_turns_at_the_gpus():
    assert [device_of("cuda", worker) for worker in range(5)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert [device_of("cuda:1", worker) for worker in range(2)] == ["cuda:1", "cuda:1"]
    assert device_of("cpu", 4) == "cpu"


@pytest.mark.usefixtures("three_gpus")
def test_there_is_one_worker_a_gpu_if_nothing_else_is_said():
    assert worker_count("auto", "cuda", threads=1) == 3
    assert worker_count("auto", "cuda:1", threads=1) == 1
    assert worker_count(5, "cuda", threads=1) == 5
    assert worker_count("auto", "cpu", threads=1) >= 1


def test_devices_are_named_as_in_torch():
    assert choose_device("cpu") == "cpu"
    for wrong in ("gpu", "cpu:1", "cuda:x", "cuda:"):
        with pytest.raises(UsageError, match=f"device '{wrong}': expected auto, cpu, cuda or cuda:0"):
            choose_device(wrong)
