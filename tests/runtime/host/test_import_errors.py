"""A wheel for another processor, system or Python ends in one line that says so, and what installs the right one."""

import os
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from edgeclip.host import import_errors
from edgeclip.host.import_errors import explain_import
from edgeclip.host.installation import install_command
from tests.conftest import DATA

# The beginning of a 64-bit library of Linux for a processor, by e_machine: s390x, which no test runs on.
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + (22).to_bytes(2, "little") + bytes(44)
HERE = EXTENSION_SUFFIXES[0].strip(".").partition(".")[0]
NEEDS_TAG = pytest.mark.skipif(not HERE.startswith("cpython-"), reason="wheels are named otherwise here")


def package(folder: Path, name: str, inside: str, library: str, content: bytes = ELF) -> None:
    """A package whose import loads a library that this Python cannot load."""
    module = folder / name / inside
    module.mkdir(parents=True)
    for place in {folder / name, module}:
        (place / "__init__.py").write_text(f"import {name}.{inside}\n" if place != module else "")
    (module / "__init__.py").write_text(f"from {name}.{inside} import library\n")
    (module / library).write_bytes(content)


def told(folder: Path, bundle: Path, *arguments: str) -> str:
    """The one line that `edgeclip embed` ends in where the packages of `folder` come first."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "edgeclip", "embed", str(bundle), *arguments],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    return done.stderr.removeprefix("edgeclip: ").rstrip("\n")


@NEEDS_TAG
@pytest.mark.parametrize("name", ["numpy", "tokenizers", "onnxruntime"])
@pytest.mark.parametrize("tag", ["cpython-27-s390x-linux-gnu", "cpython-27-x86_64-linux-musl", "cp27-win_arm64"])
def test_a_wheel_for_another_python_says_for_which(name: str, tag: str, bundle: Path, tmp_path: Path) -> None:
    """Python says that the module is not there, for it looks for files of its own tag alone."""
    package(tmp_path, name, "core", f"library.{tag}.{'pyd' if 'win' in tag else 'so'}")
    found = told(tmp_path, bundle, "--text", "a")
    why = f"{name} is installed but cannot be loaded (it is built for {tag}, and this Python is {HERE}); "
    assert found.startswith(f"{why}`{install_command('cpu', '--force-reinstall')}`")


@NEEDS_TAG
def test_pillow_of_another_python_is_not_called_missing(bundle: Path, tmp_path: Path) -> None:
    package(tmp_path, "PIL", "Image", "library.cpython-27-s390x-linux-gnu.so")
    found = told(tmp_path, bundle, "--image", str(DATA / "images" / "gray.jpg"))
    assert found.startswith("PIL is installed but cannot be loaded (it is built for cpython-27-s390x-linux-gnu, and ")
    assert found.endswith(f"`{install_command('images', '--force-reinstall')}`")


@pytest.mark.skipif(sys.platform != "linux", reason="ELF is Linux's")
def test_a_library_for_any_python_says_for_which_processor(bundle: Path, tmp_path: Path) -> None:
    """As tokenizers' is: the system says that such a file "cannot be opened"."""
    aarch64, x86_64 = 0xB7, 0x3E
    other = x86_64 if "aarch64" in HERE else aarch64
    package(tmp_path, "tokenizers", "core", "library.abi3.so", ELF[:18] + other.to_bytes(2, "little") + ELF[20:])
    found = told(tmp_path, bundle, "--text", "a")
    name = "x86_64" if other == x86_64 else "aarch64"
    assert found.startswith(f"tokenizers is installed but cannot be loaded (it is built for {name}, and this Python")


def test_a_damaged_library_is_told_in_the_systems_words(bundle: Path, tmp_path: Path) -> None:
    package(tmp_path, "tokenizers", "core", f"library{EXTENSION_SUFFIXES[0]}", b"nothing of the kind")
    found = told(tmp_path, bundle, "--text", "a")
    assert found.startswith("tokenizers is installed but cannot be loaded (") and "built for" not in found
    assert str(tmp_path) in found


@pytest.mark.parametrize(
    ("tag", "size", "version", "why"),
    [
        ("cpython-312-x86_64-linux-musl", 8, (3, 12), "no wheel for musl: take a system with glibc"),
        ("cpython-311-arm-linux-gnueabihf", 4, (3, 11), "no wheel for 32 bits: take a 64-bit system"),
        ("cpython-319-x86_64-linux-gnu", 8, (3, 19), "may have no wheel for Python 3.19 yet: take 3.14"),
        ("cpython-311-x86_64-linux-gnu", 8, (3, 11), None),
    ],
)
def test_where_pip_finds_no_onnxruntime_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, tag: str, size: int, version: tuple[int, int], why: str | None
) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", {"SOABI": tag}.get)
    monkeypatch.setattr(import_errors.struct, "calcsize", {"P": size}.get)
    monkeypatch.setattr(import_errors.sys, "version_info", (*version, 0, "final", 0))
    found = str(explain_import(ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")))
    assert (why or "is not installed: `") in found
    assert "wheel" not in str(explain_import(ModuleNotFoundError("No module named 'numpy'", name="numpy")))


def test_a_fault_of_our_own_is_not_explained_away() -> None:
    for error in (
        ImportError("no name"),
        ModuleNotFoundError("No module named 'edgeclip.gone'", name="edgeclip.gone"),
    ):
        assert explain_import(error) is None
