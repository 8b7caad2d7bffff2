"""Test whether one of onnxruntime's providers really runs: `python -m edgeclip.doctor.probe PROVIDER` computes one
product.

It runs in a process of its own, because a broken driver may crash or hang it, and because onnxruntime writes the
reason why a library was not loaded only to its log on stderr.
"""

import re
import subprocess
import sys

import numpy as np

from edgeclip.engine.ort import import_onnxruntime

# y = MatMul(x, w) as a model, opset 17: x (1, 4), w (4, 2) all 0.5, float32.
_PRODUCT = (
    b'\x08\x08:m\n\x11\n\x01x\n\x01w\x12\x01y"\x06MatMul\x12\x01g*+\x08\x04\x08\x02\x10\x01B\x01wJ '
    + b"\x00\x00\x00?" * 8
    + b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x04"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x02B\x04\n\x00\x10\x11"
)
# TensorRT builds an engine even for one product.
_PATIENCE_S = 120.0
_MISSING = re.compile(r"[^\s:]+: cannot open shared object file|\[OpenVINO\] Device \w+ is not available")
# What a log line begins with: colours, the time, the place in onnxruntime's source.
_PREFIX = re.compile(r"\x1b\[[\d;]*m|^\S+ \S+ \[\w:onnxruntime:[^\]]*\] *|^\S*/onnxruntime/\S+ ")


def probe_provider(provider: str, *, patience_s: float = _PATIENCE_S) -> str | None:
    """Why `provider` does not run here, in one line; None when it does."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "edgeclip.doctor.probe",
        provider,
    ]  # -P: a numpy.py in the working folder is none
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=patience_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {patience_s:.0f} s"
    except OSError as error:
        return f"python cannot be started ({error.strerror})"
    return None if done.returncode == 0 else find_reason(done.stderr, done.returncode)


def find_reason(log: str, status: int) -> str:
    """The most useful line of a failed probe's stderr: the one about a missing library, else the last."""
    if missing := _MISSING.search(log):
        return missing[0]
    lines = [line for raw in log.splitlines() if (line := _clean(raw))]
    if status < 0:
        return f"it crashed with signal {-status}"
    return lines[-1] if lines else f"it ended with status {status}"


def run_product(provider: str) -> None:
    """Compute a product with `provider` in this process.

    Raises RuntimeError when another provider computed it, or the result is wrong.
    """
    onnxruntime = import_onnxruntime()
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(_PRODUCT, providers=[provider], enable_fallback=0)
    if (running := session.get_providers()[0]) != provider:
        raise RuntimeError(f"onnxruntime could start only {running}")
    product = session.run(None, {"x": np.arange(4, dtype=np.float32)[None]})[0]
    if not np.array_equal(product, [[3.0, 3.0]]):
        raise RuntimeError(f"it multiplies wrongly: {product.tolist()} for [[3.0, 3.0]]")


def _clean(line: str) -> str:
    while (shorter := _PREFIX.sub("", line).strip()) != line:
        line = shorter
    return line


if __name__ == "__main__":
    try:
        run_product(sys.argv[1])
    except Exception as error:  # onnxruntime's share no base class
        sys.exit(str(error).splitlines()[0] if str(error) else type(error).__name__)
