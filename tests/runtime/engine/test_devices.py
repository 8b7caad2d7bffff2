"""A device is what was asked for or an error, and threads are what the container may use."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip import Encoder
from edgeclip.engine.devices import (
    DEVICES,
    Device,
    check_index,
    check_unit,
    choose_device,
    choose_threads,
    usable_cpus,
)
from edgeclip.errors import DeviceError
from edgeclip.host.installation import install_command
from edgeclip.manifest import Manifest, Target
from tests.runtime.host.test_cgroup import plant

CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider", *CPU)
TENSORRT = ("TensorrtExecutionProvider", *CUDA)
OPENVINO = ("OpenVINOExecutionProvider", *CPU)


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
        ("openvino", OPENVINO, "tensorrt", "openvino:CPU"),
        ("openvino:GPU", OPENVINO, "tensorrt", "openvino:GPU"),
        ("openvino:NPU", OPENVINO, "tensorrt", "openvino:NPU"),
        ("auto", OPENVINO, "tensorrt", "cpu"),  # nobody said that OpenVINO is wanted
    ],
)
def test_what_is_asked_for_and_there_is_chosen(
    request_: str, available: tuple[str, ...], target: Target, device: str
) -> None:
    assert str(choose_device(request_, available, target)) == device


@pytest.mark.parametrize(
    "request_",
    [
        *("", "gpu", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:0\n", " cpu", "mps", None, 0),
        *("openvino:", "openvino:cpu", "openvino:0", "openvino:TPU", "OpenVINO", "cuda:99999", "cuda:٣"),
    ],
)
def test_a_name_that_is_no_device(request_: str) -> None:
    with pytest.raises(DeviceError) as caught:
        choose_device(request_, (*TENSORRT, *OPENVINO), "tensorrt")
    assert str(caught.value) == f"unknown device {request_!r}; devices are {DEVICES}"


@pytest.mark.parametrize(("request_", "available"), [("cuda", CPU), ("cuda:1", CPU), ("tensorrt", CUDA)])
def test_no_device_stands_in_for_one_that_is_not_there(request_: str, available: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError) as caught:
        choose_device(request_, available, "cuda")
    message = str(caught.value)
    assert f"{request_!r} asked for" in message
    assert ", ".join(available) in message
    assert install_command("gpu") in message


def test_openvino_that_is_not_there_names_its_extra() -> None:
    with pytest.raises(DeviceError, match=r"'openvino:CPU' asked for, but .* has only CPU.*\[openvino\]"):
        choose_device("openvino:CPU", CPU, "tensorrt")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_openvino_takes_graphs_of_standard_operators_only(target: Target) -> None:
    """It would leave the fused ones to the CPU."""
    with pytest.raises(DeviceError, match=f"this bundle's are for {target}; .*edgeclip export --target tensorrt"):
        choose_device("openvino", OPENVINO, target)


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_a_number_beyond_the_gpus(kind: str) -> None:
    check_index(Device(kind=kind, index=1), ("H200", "T4"))
    check_index(Device(kind=kind, index=7), ())  # nobody knows: onnxruntime will tell
    check_index(Device(kind="openvino", index=7), ("H200",))
    with pytest.raises(DeviceError, match=rf"{kind}:2 asked for, but the GPUs here are 0 \(H200\), 1 \(T4\)"):
        check_index(Device(kind=kind, index=2), ("H200", "T4"))


def test_an_openvino_unit_that_is_not_there() -> None:
    check_unit(Device(kind="openvino", unit="GPU"), ("CPU", "GPU.0", "GPU.1"))
    check_unit(Device(kind="openvino", unit="NPU"), ("CPU", "NPU"))
    check_unit(Device(kind="cuda"), ())
    with pytest.raises(DeviceError, match="openvino:GPU asked for, but OpenVINO finds only CPU here"):
        check_unit(Device(kind="openvino", unit="GPU"), ("CPU",))


def test_a_device_knows_its_provider() -> None:
    devices = [Device(kind=kind, index=2) for kind in ("cpu", "cuda", "tensorrt")]
    assert tuple(device.provider for device in reversed(devices)) == TENSORRT


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),  # one and a half keep two busy
        ("100000 100000", 1),
        ("5000 100000", 1),
        ("6400000 100000", 8),
    ],
)
def test_threads_are_the_affinity_cut_to_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert usable_cpus(plant(tmp_path, "0::/pod/box\n", mounts, {"pod/cpu.max": quota})) == expected


def test_threads_where_there_is_no_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus(tmp_path) == 6


def test_threads_here() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


def with_parameters(manifest: Manifest, *counts: int) -> Manifest:
    """A manifest whose graphs have so many parameters."""
    graphs = zip(manifest.graphs.items(), counts, strict=True)
    return replace(manifest, graphs={name: replace(one, parameters=count) for (name, one), count in graphs})


@pytest.mark.parametrize(
    ("counts", "threads"),
    [
        ((790_016, 880_848), 1),  # the demo's
        ((1_500_000, 1_500_000), 1),
        ((2_700_000, 2_700_000), 8),
        ((100_000, 85_876_992), 8),  # the larger graph decides
        ((136_849_920, 100_000), 8),
    ],
)
def test_tiny_graphs_get_one_thread(bundle: Path, counts: tuple[int, int], threads: int) -> None:
    assert choose_threads(with_parameters(Manifest.read(bundle), *counts), 8) == threads
    assert choose_threads(with_parameters(Manifest.read(bundle), *counts), 1) == 1


def test_an_asked_number_of_threads_wins(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip.open_bundle.usable_cpus", lambda: 4)
    for asked, threads, decoding in ((None, 1, 4), (3, 3, 3), (1, 1, 1)):
        with Encoder.open(bundle, device="cpu", threads=asked) as encoder:
            assert (encoder.threads, encoder._decoding_threads) == (threads, decoding)
