"""Each ailment of an installation is found, and its command mends it; a sound one has none."""

import dataclasses
from typing import Any

import pytest

from edgeclip.doctor.diagnosis import Facts, Processor, Provider, diagnose
from edgeclip.host.installation import install_command
from edgeclip.host.nvidia import Driver

CPU = Provider(name="CPUExecutionProvider", error=None)
CUDA = Provider(name="CUDAExecutionProvider", error=None)
NO_CUDA = Provider(name="CUDAExecutionProvider", error="libcublasLt.so.13: cannot open shared object file")
NO_TENSORRT = Provider(name="TensorrtExecutionProvider", error="libnvinfer.so.10: cannot open shared object file")
OPENVINO = Provider(name="OpenVINOExecutionProvider", error=None)
H200 = Driver(cuda="13.0", gpus=("H200",))
FOUND = {"CUDA": "13.0", "cuDNN": "9.8.0", "TensorRT": None}
SOUND = Facts(
    edgeclip="1",
    python="3.11",
    system="Linux",
    wheels={"onnxruntime": "1.31.1"},
    onnxruntime="1.31.1",
    import_error=None,
    providers=(CPU,),
    driver=None,
    cuda_built_for="",
    libraries={},
    openvino_units=(),
    processor=Processor(name="x", features=(), cores=2, usable=2, quota=None),
    memory_bytes=None,
    memory_limit_bytes=None,
    pillow="13.0.0",
)
GPU: dict[str, Any] = {
    "wheels": {"onnxruntime-gpu": "1.31.1"},
    "providers": (CUDA, CPU),
    "driver": H200,
    "cuda_built_for": "13.0",
    "libraries": FOUND,
}


@pytest.mark.parametrize(
    "changes",
    [{}, GPU, {"wheels": {"onnxruntime-openvino": "1.24.1"}, "onnxruntime": "1.24.1", "providers": (OPENVINO, CPU)}],
)
def test_nothing_ails_a_sound_one(changes: dict[str, Any]) -> None:
    assert diagnose(dataclasses.replace(SOUND, **changes)) == ()


@pytest.mark.parametrize(
    ("changes", "level", "problem", "command"),
    [
        (
            {"wheels": {"onnxruntime": "1", "onnxruntime-gpu": "1"}},
            "error",
            "onnxruntime and onnxruntime-gpu are both installed",
            f"pip uninstall -y onnxruntime onnxruntime-gpu && {install_command('gpu')}",
        ),
        (
            {"wheels": {"onnxruntime": "1", "onnxruntime-openvino": "1"}, "onnxruntime": None, "import_error": "no"},
            "error",
            "overwrite each other",
            f"pip uninstall -y onnxruntime onnxruntime-openvino && {install_command('openvino')}",
        ),
        (
            {"wheels": {"onnxruntime": "1", "onnxruntime-gpu": "1", "onnxruntime-openvino": "1"}},
            "error",
            "overwrite each other",
            f"pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-openvino && {install_command('gpu')}",
        ),
        (
            {"wheels": {}, "onnxruntime": None, "import_error": "no module", "providers": ()},
            "error",
            "not installed (no module)",
            install_command("cpu"),
        ),
        (
            {"wheels": {}, "onnxruntime": None, "import_error": "no module", "providers": (), "driver": H200},
            "error",
            "not installed",
            install_command("gpu"),
        ),
        (
            {"onnxruntime": None, "import_error": "libgomp.so.1", "providers": ()},
            "error",
            "cannot be loaded (libgomp.so.1)",
            install_command("cpu", "--force-reinstall"),
        ),
        ({"onnxruntime": "1.20.0"}, "error", "is 1.20.0, wanted 1.27", install_command("cpu", "--upgrade")),
        (
            {"wheels": {"onnxruntime-gpu": "1.31.1"}},
            "error",
            "it was overwritten",
            install_command("gpu", "--force-reinstall"),
        ),
        (
            {"providers": (Provider(name="CPUExecutionProvider", error="it crashed with signal 4"),)},
            "error",
            "does not run on the CPU (it crashed with signal 4)",
            install_command("cpu", "--force-reinstall"),
        ),
        (
            {"driver": H200},
            "note",
            "H200 is here, and this onnxruntime cannot use it",
            f"pip uninstall -y onnxruntime && {install_command('gpu')}",
        ),
        (GPU | {"providers": (NO_CUDA, CPU), "driver": None}, "error", "no NVIDIA driver", "ubuntu-drivers install"),
        (
            GPU | {"providers": (NO_CUDA, CPU), "driver": Driver(cuda="13.0", gpus=())},
            "error",
            "shows no GPU",
            "nvidia-smi",
        ),
        (
            GPU | {"providers": (NO_CUDA, CPU), "driver": Driver(cuda="12.4", gpus=("T4",))},
            "error",
            "the driver runs CUDA 12.4 at most, this onnxruntime wants 13.0",
            "ubuntu-drivers install",
        ),
        (
            GPU | {"providers": (NO_CUDA, CPU), "libraries": {"CUDA": "13.0", "cuDNN": None}},
            "error",
            "cuDNN not found; libcublasLt",
            'pip install "onnxruntime-gpu[cuda,cudnn]"',
        ),
        (GPU | {"providers": (NO_TENSORRT, CUDA, CPU)}, "note", "TensorRT does not run (libnv", "tensorrt-cu13"),
        (
            {
                "wheels": {"onnxruntime-openvino": "1.24.1"},
                "providers": (Provider(name="OpenVINOExecutionProvider", error="broken"), CPU),
            },
            "error",
            "OpenVINO does not run (broken)",
            install_command("openvino", "--force-reinstall"),
        ),
        ({"pillow": None}, "note", "Pillow is not installed", install_command("images")),
    ],
)
def test_each_ailment_has_its_command(changes: dict[str, Any], level: str, problem: str, command: str) -> None:
    [finding] = diagnose(dataclasses.replace(SOUND, **changes))
    assert finding.level == level
    assert problem in finding.problem and command in finding.command


def test_the_worst_comes_first() -> None:
    found = diagnose(dataclasses.replace(SOUND, pillow=None, driver=H200, onnxruntime="1.9.0"))
    assert [finding.level for finding in found] == ["error", "note", "note"]
