"""`edgeclip serve --prepack` packs what is worth it before it serves, once, and says what failed."""

import logging
from pathlib import Path

import pytest

from edgeclip.engine.memory_check import packed_bytes
from edgeclip.errors import BuildError
from edgeclip.manifest import Manifest
from edgeclip.serve.packing_first import packed_first
from edgeclip.serve.settings import Settings


def packed(bundle: Path) -> set[str]:
    manifest = Manifest.read(bundle)
    return {graph for graph in manifest.graphs if packed_bytes(manifest, graph)}


def test_graphs_are_packed_once(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level(logging.INFO)
    with packed_first(Settings(bundle=bundle)):
        assert packed(bundle) == set()
    with packed_first(Settings(bundle=bundle, prepack=True, modality="text")):
        assert packed(bundle) == set()  # fp32 texts are read in place
    with packed_first(Settings(bundle=bundle, prepack=True)):
        assert packed(bundle) == {"vision"}
    assert "packing the weights of vision" in caplog.text
    caplog.clear()
    with packed_first(Settings(bundle=bundle, prepack=True)):
        assert caplog.text == ""


def test_what_cannot_be_packed_is_not_served(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="prepack"), packed_first(Settings(bundle=bundle, prepack=True)):
        raise AssertionError("it must not be served")
    assert str(tmp_path / "file") in capfd.readouterr().err
