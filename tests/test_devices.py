"""A device is what was asked for or an error, and threads are what the container may use."""

import os
from pathlib import Path

import pytest

from edgeclip.devices import Device, choose_device, usable_cpus
from edgeclip.errors import DeviceError
from edgeclip.manifest import Target

CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider", *CPU)
TENSORRT = ("TensorrtExecutionProvider", *CUDA)


@pytest.mark.parametrize(
    ("request_", "available", "target", "device"),
    [
        ("auto", CPU, "cpu", "cpu"),
        ("auto", CPU, "cuda", "cpu"),
        ("auto", CPU, "tensorrt", "cpu"),
        ("auto", CUDA, "cuda", "cuda:0"),
        ("auto", CUDA, "tensorrt", "cpu"),
        ("auto", TENSORRT, "tensorrt", "tensorrt:0"),
        ("auto", TENSORRT, "cuda", "cuda:0"),
        ("auto", TENSORRT, "cpu", "cpu"),  # a CPU's graphs are not a GPU's
        ("cpu", TENSORRT, "cuda", "cpu"),
        ("cuda", CUDA, "cuda", "cuda:0"),
        ("cuda:1", CUDA, "cpu", "cuda:1"),
        ("tensorrt:12", TENSORRT, "cpu", "tensorrt:12"),
    ],
)
def test_what_is_asked_for_and_there_is_chosen(
    request_: str, available: tuple[str, ...], target: Target, device: str
) -> None:
    assert str(choose_device(request_, available, target)) == device


@pytest.mark.parametrize(
    "request_", ["", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:0\n", " cpu", "mps", None, 0]
)
def test_a_name_that_is_no_device(request_: str) -> None:
    with pytest.raises(DeviceError) as caught:
        choose_device(request_, TENSORRT, "cpu")
    assert str(caught.value) == f"unknown device {request_!r}; devices are auto, cpu, cuda[:n] and tensorrt[:n]"


@pytest.mark.parametrize(("request_", "available"), [("cuda", CPU), ("cuda:1", CPU), ("tensorrt", CUDA)])
def test_no_device_stands_in_for_one_that_is_not_there(request_: str, available: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError) as caught:
        choose_device(request_, available, "cuda")
    message = str(caught.value)
    assert f"{request_!r} asked for" in message
    assert ", ".join(available) in message
    assert "pip install edgeclip[gpu]" in message


def test_a_device_knows_its_provider() -> None:
    devices = [Device(kind=kind, index=2) for kind in ("cpu", "cuda", "tensorrt")]
    assert tuple(device.provider for device in reversed(devices)) == TENSORRT


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),  # one and a half keep two busy
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "0 100000\n"}, 8),
        ({"cpu.max": "100000 0\n"}, 8),
        ({"cpu.max": "some words\n"}, 8),
        ({"cpu.max": ""}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu.max": "100000 100000\n", "cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_threads_are_the_affinity_cut_to_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    """Version 2 of cgroups, then version 1, and neither when it says nothing that is a number."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cpus(tmp_path) == expected


def test_threads_where_there_is_no_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus(tmp_path) == 6


def test_threads_here() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
