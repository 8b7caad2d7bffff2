"""A provider runs when it has multiplied; one that is listed and broken is told with onnxruntime's own reason."""

from pathlib import Path

import pytest

from edgeclip.doctor.probe import find_reason, probe_provider, run_product


def test_the_cpu_runs() -> None:
    assert probe_provider("CPUExecutionProvider") is None
    run_product("CPUExecutionProvider")


def test_files_in_the_working_folder_are_no_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert probe_provider("CPUExecutionProvider") is None


def test_one_that_does_not_says_why() -> None:
    assert "NoProvider" in str(probe_provider("NoProvider"))


def test_one_that_hangs_is_left() -> None:
    assert probe_provider("CPUExecutionProvider", patience_s=0.001) == "no answer within 0 s"


@pytest.mark.parametrize(
    ("log", "status", "reason"),
    [
        (
            "\x1b[1;31m2026-11-22 08:28:01.1 [E:onnxruntime:Default, provider_bridge_ort.cc:2430 operator()] "
            "/a/provider_bridge_ort.cc:2043 Failed to load library /a/libonnxruntime_providers_cuda.so with error: "
            "libcublasLt.so.13: cannot open shared object file: No such file or directory\n\x1b[m\nmore\n",
            1,
            "libcublasLt.so.13: cannot open shared object file",
        ),
        (
            "a\nonnxruntime could start only CPUExecutionProvider\n\n",
            1,
            "onnxruntime could start only CPUExecutionProvider",
        ),
        ("some words\n", -11, "it crashed with signal 11"),
        ("", 3, "it ended with status 3"),
        ("\x1b[0;93m2026-11-22 08:12:15.3 [W:onnxruntime:Default, a.cc:1 f] no device\x1b[m\n", 1, "no device"),
    ],
)
def test_the_line_that_says_most(log: str, status: int, reason: str) -> None:
    assert find_reason(log, status) == reason
