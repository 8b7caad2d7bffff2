"""Nothing that edgeclip runs phones home: onnxruntime's telemetry is off before onnxruntime is loaded."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeclip.host.telemetry import VARIABLE, disable_telemetry
from edgeclip.manifest import Manifest
from edgeclip.triton import readme
from tests.serve.test_deploy import DEPLOY
from tests.test_imports import PACKAGES, imports, modules

# Opens a bundle and encodes; then waits for the uploader, a thread of its own: onnxruntime 1.31.1 looks its host up
# nine seconds after it was imported (measured on two x86 cores with strace -r).
_ENCODES = """if True:
    import sys, time
    {before}
    from edgeclip import Encoder
    with Encoder.open(sys.argv[1], device="cpu") as encoder:
        encoder.encode_text("a")
    time.sleep({wait_s})
"""
_STRACE = ["strace", "-f", "-qq", "-e", "trace=socket,connect,sendto,sendmsg", "-o"]


def can_trace() -> bool:
    """Whether strace is installed and may trace here."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run([*_STRACE, os.devnull, sys.executable, "-c", ""], capture_output=True).returncode == 0


def encode(bundle: Path, home: Path, *, before: str = "", wait_s: float = 0, log: Path | None = None) -> list[str]:
    """Run `_ENCODES` with its home in an empty folder; the files that it left there."""
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "LOCALAPPDATA": str(home)}
    traced = [*_STRACE, str(log)] if log else []
    program = _ENCODES.format(before=before, wait_s=wait_s)
    command = [*traced, sys.executable, "-c", program, str(bundle)]
    subprocess.run(command, check=True, env=environment, timeout=120)
    return [path.name for path in home.rglob("*") if path.is_file()]


def test_encoding_leaves_no_file_and_opens_no_socket(bundle: Path, tmp_path: Path) -> None:
    """Where strace may trace, no thread of the process as much as makes a socket for a look-up."""
    log = tmp_path / "log" if can_trace() else None
    assert encode(bundle, tmp_path / "home", log=log, wait_s=12 if log else 0) == []
    if log:
        assert [line for line in log.read_text().splitlines() if "AF_INET" in line] == []


def test_the_trace_would_find_what_the_variable_prevents(bundle: Path, tmp_path: Path) -> None:
    """With telemetry on by the user's own wish, this onnxruntime leaves a device id where the test above looks."""
    found = encode(bundle, tmp_path / "home", before=f'import os; os.environ["{VARIABLE}"] = "0"')
    if not found:
        pytest.skip("this onnxruntime has no telemetry")
    assert "deviceid" in found


def imports_onnxruntime(package: str) -> bool:
    """Whether some module of a package imports onnxruntime, at its top or in a function."""
    return any(name.partition(".")[0] == "onnxruntime" for path in modules(package) for name in imports(path))


@pytest.mark.parametrize("package", [package for package in PACKAGES if imports_onnxruntime(package)])
def test_every_package_switches_it_off_first(package: str) -> None:
    """Importing any module of a package runs the package's own file, after which onnxruntime may be imported."""
    program = f"import sys, os, {package}; print(os.environ['{VARIABLE}'], 'onnxruntime' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.split() == ["1", "False"]


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_value_is_not_the_users_wish_to_send(bundle: Path, tmp_path: Path, value: str) -> None:
    """onnxruntime would send and leave its files: a compose file's `${X:-}` is empty."""
    assert encode(bundle, tmp_path / "home", before=f'import os; os.environ["{VARIABLE}"] = "{value}"') == []


def test_what_the_user_set_stays() -> None:
    environment = {VARIABLE: "0"}
    disable_telemetry(environment)
    assert environment == {VARIABLE: "0"}


def test_an_onnxruntime_that_came_first_is_asked_to_send_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    loaded = SimpleNamespace(disable_telemetry_events=lambda: asked.append(True))
    monkeypatch.setitem(sys.modules, "onnxruntime", loaded)
    disable_telemetry({VARIABLE: "0"})
    assert asked == []
    disable_telemetry({})
    assert asked == [True]


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("[!R]*[!e]")), ids=lambda path: path.name)
def test_each_way_to_deploy_sets_the_variable(path: Path) -> None:
    """For the health checks' own processes too, and whatever else is started there."""
    if path.suffix == ".dockerignore":
        pytest.skip("starts nothing")
    settings = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert re.search(rf'{VARIABLE}(=|: |, value: )"?1\b', "\n".join(settings))


def test_tritons_command_sets_the_variable(bundle: Path) -> None:
    command = readme(Manifest.read(bundle)).partition("```\n")[2].partition("```")[0]
    assert f" -e {VARIABLE}=1 " in command
