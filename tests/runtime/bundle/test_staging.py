"""What killed writers left is removed by the next, and nothing that may be written: not by names, not by numbers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeclip.bundle import staging
from edgeclip.bundle.staging import check_place, remove_left_behind, stage_folder, stage_name, staged

needs_locks = pytest.mark.skipif(os.name != "posix", reason="folders have no locks")
_WRITER = """if True:
    import sys, time
    from pathlib import Path
    from edgeclip.bundle.staging import staged
    with staged(Path(sys.argv[1]), 0) as stage:
        (stage / "text.onnx").write_bytes(b"half")
        print(stage.name, flush=True)
        time.sleep(60)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def begin(out: Path) -> "tuple[subprocess.Popen[str], str]":
    """A process that writes `out`, and its stage's name."""
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, process.stdout.readline().strip()


def make_stage(name: str, folder: Path, age_s: float) -> Path:
    """A stage without a writer in which nothing changed for so long."""
    stage = folder / name
    stage.mkdir()
    (stage / "text.onnx").write_bytes(b"half")
    for path in (stage / "text.onnx", stage):
        os.utime(path, (time.time() - age_s,) * 2)
    return stage


@needs_locks
def test_a_killed_writers_folder_goes_and_a_running_ones_stays(tmp_path: Path) -> None:
    killed, left = begin(tmp_path / "bundle")
    running, other = begin(tmp_path / "bundle")
    try:
        assert names(tmp_path) == {left, other}
        killed.kill()
        killed.communicate()
        check_place(tmp_path / "bundle", 0)
        assert names(tmp_path) == {other}
    finally:
        running.kill()
        running.communicate()


def test_two_writers_of_one_target_have_two_folders(tmp_path: Path) -> None:
    """Also in one process; the first that is done is kept."""
    with staged(tmp_path / "engines", 0) as slow:
        with stage_folder(tmp_path / "engines") as quick:
            remove_left_behind(tmp_path / "engines")
            assert slow != quick and names(tmp_path) == {slow.name, quick.name}
        assert names(tmp_path) == {slow.name}
    assert names(tmp_path) == {"engines"}


@needs_locks
@pytest.mark.parametrize(("age_s", "stays"), [(3600, True), (2 * 86400, False)])
def test_another_machines_folder_stays_for_a_day(tmp_path: Path, age_s: float, stays: bool) -> None:
    """Its lock may not be seen here."""
    stage = make_stage("bundle.0badcafe-01234567.tmp", tmp_path, age_s)
    remove_left_behind(tmp_path / "bundle")
    assert stage.exists() == stays


@needs_locks
def test_a_machine_without_a_number_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_machine", lambda: "0")
    stage = make_stage(stage_name("bundle"), tmp_path, 0)
    remove_left_behind(tmp_path / "bundle")
    assert stage.exists()


def test_what_is_no_stage_of_it_stays(tmp_path: Path) -> None:
    others = {"bundle.tmp", "bundle.notes.tmp", "bundle.1234.tmp", stage_name("bundle2"), stage_name("my-bundle")}
    for name in others:
        make_stage(name, tmp_path, 2 * 86400)
    (tmp_path / stage_name("bundle")).touch()  # a file, as of somebody's copy
    kept = names(tmp_path)
    remove_left_behind(tmp_path / "bundle")
    assert names(tmp_path) == kept


@needs_locks
def test_a_folder_that_is_cleared_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = staging._lock
    cleared: list[Path] = []

    def late(folder: Path, *, waits: bool = False) -> int | None:
        if waits and not cleared:
            cleared.append(folder)
            folder.rmdir()
        return lock(folder, waits=waits)

    monkeypatch.setattr(staging, "_lock", late)
    with stage_folder(tmp_path / "bundle") as stage:
        assert stage.is_dir() and [stage] != cleared
    assert names(tmp_path) == set()


def test_names_are_never_given_twice() -> None:
    """In containers every process has the number 1."""
    assert len({stage_name("bundle") for _ in range(100)}) == 100
