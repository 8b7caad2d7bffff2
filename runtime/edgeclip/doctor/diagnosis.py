"""Find the problems of an installation and the command that mends each, from facts read by
`edgeclip.doctor.environment`.

Nothing is read or started here. The rules cover what users of onnxruntime run into: two wheels that overwrite each
other (#26996), a GPU wheel without its libraries (#21769), a driver too old for the CUDA that the wheel was built
with. onnxruntime reports none of these by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgeclip.engine.advice import Advice
from edgeclip.engine.devices import PROVIDERS
from edgeclip.host.installation import install_command
from edgeclip.host.memory_limits import MemoryLimit
from edgeclip.host.nvidia import Driver

# The wheels that bring an `onnxruntime` folder, and the extra of each; only one may be installed.
WHEELS = {"onnxruntime": "cpu", "onnxruntime-gpu": "gpu", "onnxruntime-openvino": "openvino"}
# As in pyproject.toml, of the wheels that follow onnxruntime's own releases.
_OLDEST = (1, 27)
_INSTALL_DRIVER = "sudo ubuntu-drivers install  # in a container: start it with --gpus all"

Level = Literal["error", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A provider that onnxruntime lists; `error` says why it does not run, None when it does."""

    name: str
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """The processor: `features` are those that decide its speed; `usable` is what affinity and `quota` leave of
    `cores`.
    """

    name: str
    features: tuple[str, ...]
    cores: int
    usable: int
    quota: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about a machine and the installation on it.

    `onnxruntime` is the version that is imported, None when the import fails for the reason in `import_error`.
    `wheels` are those that pip lists. `cuda_built_for` is the CUDA version that the wheel needs, `libraries` the
    versions of CUDA, cuDNN and TensorRT that were found (None: not found); both are empty without a GPU wheel. Memory
    is in bytes, `memory_limit_bytes` is the control group's limit, `memory_limits` are all of this process's.
    `advice` is which bundle to run on the CPU, None where onnxruntime does not run on it.
    """

    edgeclip: str
    python: str
    system: str
    wheels: Mapping[str, str]
    onnxruntime: str | None
    import_error: str | None
    providers: tuple[Provider, ...]
    driver: Driver | None
    cuda_built_for: str
    libraries: Mapping[str, str | None]
    openvino_units: tuple[str, ...]
    processor: Processor
    memory_bytes: int | None
    memory_limit_bytes: int | None
    memory_limits: tuple[MemoryLimit, ...] = ()
    pillow: str | None
    advice: Advice | None = None

    def runs(self, kind: str) -> bool:
        """Whether a provider for this kind of device was started and gave the right answer."""
        return any(one.name == PROVIDERS[kind] and one.error is None for one in self.providers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem and the command that mends it. A note is about something that works without it."""

    level: Level
    problem: str
    command: str


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """The problems of an installation, the worst first."""
    findings = [*_wheels(facts), *_cpu(facts), *_gpu(facts), *_openvino(facts)]
    if facts.pillow is None:
        findings.append(_note("Pillow is not installed: no image file can be decoded", install_command("images")))
    return tuple(sorted(findings, key=lambda finding: finding.level != "error"))


def _wheels(facts: Facts) -> list[Finding]:
    known = [wheel for wheel in WHEELS if wheel in facts.wheels]
    if len(known) > 1:
        return [
            _error(
                f"{' and '.join(known)} are both installed and overwrite each other",
                f"pip uninstall -y {' '.join(known)} && {install_command(_extra(facts))}",
            )
        ]
    if facts.onnxruntime is None and not known:
        return [_error(f"onnxruntime is not installed ({facts.import_error})", install_command(_extra(facts)))]
    if facts.onnxruntime is None:
        return [_error(f"{known[0]} is installed and cannot be loaded ({facts.import_error})", _reinstall(facts))]
    numbers = tuple(int(part) for part in facts.onnxruntime.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST and known != ["onnxruntime-openvino"]:  # that one lags behind: 1.24
        oldest = ".".join(map(str, _OLDEST))
        return [
            _error(
                f"onnxruntime is {facts.onnxruntime}, wanted {oldest} or later",
                install_command(_extra(facts), "--upgrade"),
            )
        ]
    listed = {one.name for one in facts.providers}
    for wheel, kind in (("onnxruntime-gpu", "cuda"), ("onnxruntime-openvino", "openvino")):
        if known == [wheel] and PROVIDERS[kind] not in listed:
            return [
                _error(
                    f"{wheel} is installed, and {PROVIDERS[kind]} is not in it: it was overwritten", _reinstall(facts)
                )
            ]
    return []


def _cpu(facts: Facts) -> list[Finding]:
    if facts.onnxruntime is None or facts.runs("cpu"):
        return []
    return [_error(f"onnxruntime does not run on the CPU ({_why(facts, 'cpu')})", _reinstall(facts))]


def _gpu(facts: Facts) -> list[Finding]:
    listed = {one.name for one in facts.providers}
    gpus = facts.driver.gpus if facts.driver else ()
    if PROVIDERS["cuda"] not in listed:
        if gpus and facts.onnxruntime and "onnxruntime-gpu" not in facts.wheels:
            installed = " ".join(facts.wheels) or "onnxruntime"
            return [
                _note(
                    f"{gpus[0]} is here, and this onnxruntime cannot use it",
                    f"pip uninstall -y {installed} && {install_command('gpu')}",
                )
            ]
        return []
    if not facts.runs("cuda"):
        return [_broken_cuda(facts, gpus)]
    if PROVIDERS["tensorrt"] in listed and not facts.runs("tensorrt"):
        major = facts.cuda_built_for.partition(".")[0]
        return [_note(f"TensorRT does not run ({_why(facts, 'tensorrt')})", f"pip install tensorrt-cu{major}")]
    return []


def _broken_cuda(facts: Facts, gpus: tuple[str, ...]) -> Finding:
    why = _why(facts, "cuda")
    if facts.driver is None:
        return _error("CUDA does not run: there is no NVIDIA driver", _INSTALL_DRIVER)
    if not gpus:
        return _error("CUDA does not run: the NVIDIA driver shows no GPU", "nvidia-smi; echo $CUDA_VISIBLE_DEVICES")
    if _major(facts.driver.cuda) < _major(facts.cuda_built_for):
        return _error(
            f"CUDA does not run: the driver runs CUDA {facts.driver.cuda} at most, this onnxruntime wants "
            f"{facts.cuda_built_for}",
            _INSTALL_DRIVER,
        )
    missing = [name for name in ("CUDA", "cuDNN") if facts.libraries.get(name) is None]
    lacks = f"{' and '.join(missing)} not found; " if missing else ""
    return _error(f"CUDA does not run: {lacks}{why}", 'pip install "onnxruntime-gpu[cuda,cudnn]"')


def _openvino(facts: Facts) -> list[Finding]:
    listed = {one.name for one in facts.providers}
    if PROVIDERS["openvino"] not in listed or facts.runs("openvino"):
        return []
    return [_error(f"OpenVINO does not run ({_why(facts, 'openvino')})", _reinstall(facts))]


def _extra(facts: Facts) -> str:
    """The extra that this installation most likely needs: that of its wheel, else the one for the hardware."""
    for wheel in ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime"):
        if wheel in facts.wheels:
            return WHEELS[wheel]
    return "gpu" if facts.driver and facts.driver.gpus else "cpu"


def _reinstall(facts: Facts) -> str:
    return install_command(_extra(facts), "--force-reinstall")


def _why(facts: Facts, kind: str) -> str:
    return next((str(one.error) for one in facts.providers if one.name == PROVIDERS[kind]), "it is not listed")


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0


def _error(problem: str, command: str) -> Finding:
    return Finding(level="error", problem=problem, command=command)


def _note(problem: str, command: str) -> Finding:
    return Finding(level="note", problem=problem, command=command)
