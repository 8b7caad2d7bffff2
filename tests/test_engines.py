"""A folder of engines is whole or not there, and one that cannot be kept is said before minutes are spent."""

import os
from pathlib import Path

import pytest

from edgeclip.engines import engine_folder
from edgeclip.errors import DeviceError


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    with engine_folder(tmp_path / "engines", "key") as (folder, is_built):
        assert not is_built
        (folder / "one.engine").write_bytes(b"built")
    with engine_folder(tmp_path / "engines", "key") as (folder, is_built):
        assert is_built and (folder / "one.engine").read_bytes() == b"built"
    with engine_folder(tmp_path / "engines", "other") as (_, is_built):
        assert not is_built
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
    """Even one with our number."""
    for number in (1, os.getpid()):
        stage = tmp_path / f"key.{number}.tmp"
        stage.mkdir()
        (stage / "half.engine").write_bytes(b"hal")
    with engine_folder(tmp_path, "key") as (folder, is_built):
        assert not is_built and names(folder) == []


def test_of_two_that_build_at_once_the_first_stays(tmp_path: Path) -> None:
    with engine_folder(tmp_path, "key") as (folder, _):
        (folder / "slow.engine").write_bytes(b"slow")
        (tmp_path / "key").mkdir()
        (tmp_path / "key" / "quick.engine").write_bytes(b"quick")
    assert names(tmp_path) == ["key"] and names(tmp_path / "key") == ["quick.engine"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="engines cannot be kept there .*set XDG_CACHE_HOME"):
        engine_folder(tmp_path / "file" / "engines", "key").__enter__()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DeviceError, match=r"cannot be kept there \(Permission denied\)"):
        engine_folder(tmp_path / "engines", "key").__enter__()
