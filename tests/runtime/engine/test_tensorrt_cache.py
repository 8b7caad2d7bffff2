"""A folder of engines is whole or not there, and one that cannot be kept is said before minutes are spent."""

import os
from pathlib import Path

import pytest

from edgeclip.bundle.staging import stage_folder, stage_name
from edgeclip.engine.tensorrt_cache import engine_folder
from edgeclip.errors import DeviceError
from tests.scenes.permissions import bound_by_permissions


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    with engine_folder(tmp_path / "engines", "key") as (folder, is_built):
        assert not is_built
        (folder / "one.engine").write_bytes(b"built")
    with engine_folder(tmp_path / "engines", "key") as (folder, is_built):
        assert is_built and (folder / "one.engine").read_bytes() == b"built"
    with engine_folder(tmp_path / "engines", "other") as (folder, is_built):
        assert not is_built
        (folder / "one.engine").write_bytes(b"built")
    assert names(tmp_path / "engines") == ["key", "other"]


def test_half_an_engine_is_not_used(tmp_path: Path) -> None:

    def build() -> None:
        with engine_folder(tmp_path, "key") as (folder, _):
            (folder / "half.engine").write_bytes(b"hal")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_not_used(tmp_path: Path) -> None:
    """And goes, where that it was killed is seen by its lock; what another process builds stays."""
    left = tmp_path / stage_name("key")
    left.mkdir()
    (left / "half.engine").write_bytes(b"hal")
    with stage_folder(tmp_path / "key") as running, engine_folder(tmp_path, "key") as (folder, is_built):
        assert not is_built and names(folder) == []
        assert {running.name, folder.name} <= set(names(tmp_path))
        assert left.exists() == (os.name != "posix")


def test_of_two_that_build_at_once_the_first_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with engine_folder(tmp_path, "key") as (slow, _):
        (slow / "slow.engine").write_bytes(b"slow")
        with engine_folder(tmp_path, "key") as (quick, is_built):  # in another thread of this process
            assert not is_built and quick != slow
            (quick / "quick.engine").write_bytes(b"quick")
    assert names(tmp_path) == ["key"] and names(tmp_path / "key") == ["files.json", "quick.engine"]
    assert capsys.readouterr().err == ""


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="engines cannot be kept there .*set XDG_CACHE_HOME"):
        engine_folder(tmp_path / "file" / "engines", "key").__enter__()


@bound_by_permissions
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DeviceError, match=r"cannot be kept there \(Permission denied\)"):
        engine_folder(tmp_path / "engines", "key").__enter__()


def build(root: Path) -> None:
    with engine_folder(root, "key") as (folder, is_built):
        assert not is_built
        (folder / "one.engine").write_bytes(b"built")
        (folder / "one.timing").write_bytes(b"times")


@pytest.mark.parametrize("damage", ["cut", "missing", "list cut", "list missing", "list of nothing"])
def test_half_a_cache_is_built_anew(tmp_path: Path, damage: str) -> None:
    """As a copy that was broken off leaves it. Engines of other sizes are none; a timing cache may grow."""
    build(tmp_path)
    engine, listed = tmp_path / "key" / "one.engine", tmp_path / "key" / "files.json"
    (tmp_path / "key" / "one.timing").write_bytes(b"more times")
    with engine_folder(tmp_path, "key") as (_, is_built):
        assert is_built
    if damage == "missing":
        engine.unlink()
    elif damage == "cut":
        engine.write_bytes(b"bui")
    elif damage == "list missing":
        listed.unlink()
    else:
        listed.write_text('{"one.eng' if damage == "list cut" else "[]")
    build(tmp_path)
    with engine_folder(tmp_path, "key") as (_, is_built):
        assert is_built


def test_engines_that_were_not_written_are_not_called_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT goes on when the disk is full, and says so in its log alone."""
    for _ in range(2):
        with engine_folder(tmp_path, "key") as (_, is_built):
            assert not is_built
        told = "the engines cannot be kept (none was written) and will be built again"
        assert capsys.readouterr().err == f"edgeclip: {tmp_path}: {told}\n"
    assert names(tmp_path) == []


def test_a_file_in_the_folders_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not ours to remove: the engines run, and it is said that they are not kept."""
    (tmp_path / "key").write_bytes(b"")
    build(tmp_path)
    assert "the engines cannot be kept (Not a directory)" in capsys.readouterr().err
    assert names(tmp_path) == ["key"]
