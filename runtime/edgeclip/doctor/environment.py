"""Read the facts of this machine and installation that `edgeclip.doctor.diagnosis` judges."""

import importlib.metadata
import os
import platform

import edgeclip
from edgeclip.doctor.diagnosis import WHEELS, Facts, Processor, Provider
from edgeclip.doctor.probe import probe_provider
from edgeclip.engine.advice import advise_here
from edgeclip.engine.devices import PROVIDERS, usable_cpus
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.errors import MissingExtraError
from edgeclip.host import nvidia
from edgeclip.host.cgroup import cpu_quota, memory_limit
from edgeclip.host.import_errors import reason
from edgeclip.host.memory_limits import read_limits
from edgeclip.host.processor import processor_features, processor_name

# By /proc/cpuinfo's names, x86 and ARM: what onnxruntime's and OpenVINO's kernels choose by.
_FEATURES = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def read_facts() -> Facts:
    """Read all facts, and start every provider that edgeclip supports. Takes some seconds."""
    version, import_error, available = None, None, []
    cuda_built_for, libraries, units = "", {}, ()
    try:
        onnxruntime = import_onnxruntime()
    except MissingExtraError as error:
        cause = error.__cause__
        import_error = reason(cause) if isinstance(cause, ImportError) else str(error).splitlines()[0]
    else:
        version = onnxruntime.__version__
        available = [name for name in onnxruntime.get_available_providers() if name in PROVIDERS.values()]
        if PROVIDERS["cuda"] in available:
            cuda_built_for = str(onnxruntime.cuda_version)
            libraries = _libraries(cuda_built_for)
        if PROVIDERS["openvino"] in available:
            units = tuple(onnxruntime.capi._pybind_state.get_available_openvino_device_ids())
    providers = tuple(Provider(name=name, error=probe_provider(name)) for name in available)
    runs_here = any(one.name == PROVIDERS["cpu"] and one.error is None for one in providers)
    return Facts(
        edgeclip=edgeclip.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        wheels=_wheels(),
        onnxruntime=version,
        import_error=import_error,
        providers=providers,
        driver=nvidia.read_driver(),
        cuda_built_for=cuda_built_for,
        libraries=libraries,
        openvino_units=units,
        processor=_processor(),
        memory_bytes=_memory(),
        memory_limit_bytes=memory_limit(),
        memory_limits=read_limits(),
        pillow=_version("pillow"),
        advice=advise_here() if runs_here else None,
    )


def _processor() -> Processor:
    features = processor_features()
    return Processor(
        name=processor_name(),
        features=tuple(name for name in _FEATURES if name in features),
        cores=os.cpu_count() or 1,
        usable=usable_cpus(),
        quota=cpu_quota(),
    )


def _libraries(built_for: str) -> dict[str, str | None]:
    """The versions of the libraries that onnxruntime would load; libraries from wheels come first."""
    major = built_for.partition(".")[0]
    return {
        "CUDA": nvidia.cuda_version(int(major)) if major.isdigit() else None,
        "cuDNN": nvidia.cudnn_version(),
        "TensorRT": nvidia.tensorrt_version(),
    }


def _wheels() -> dict[str, str]:
    return {wheel: version for wheel in WHEELS if (version := _version(wheel))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no such function
        return None
