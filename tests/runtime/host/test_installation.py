"""What adds an extra names the place that edgeclip came from, never its name alone: nobody owns that on the index."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeclip.host.installation import format_command, install_command
from tests.conftest import DATA
from tests.test_imports import ALL

ROOT = DATA.parents[1]
SHELLS = [shell for shell in ("sh", "bash", "dash", "zsh", "ksh", "fish") if shutil.which(shell)]
ELSEWHERE = "pip install '.[bench]'  # in the folder of edgeclip's source"
COMMIT = "a" * 40


def url(path: Path, **facts: Any) -> dict[str, Any]:
    """What pip writes into direct_url.json for a folder or a file."""
    return {"url": path.as_uri(), **facts}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"dir_info": {}}, "pip install '{path}[bench]'"),
        ({"dir_info": {"editable": True}}, "pip install -e '{path}[bench]'"),
        ({"archive_info": {"hash": "sha256=0"}}, "pip install '{path}[bench]'"),
    ],
)
def test_a_folder_or_a_wheel_is_named(tmp_path: Path, facts: dict[str, Any], expected: str) -> None:
    assert format_command(url(tmp_path, **facts), None, "bench") == expected.format(path=tmp_path)
    with_option = format_command(url(tmp_path, **facts), None, "bench", "--upgrade")
    assert with_option == expected.format(path=tmp_path).replace("pip install", "pip install --upgrade")


@pytest.mark.parametrize(
    ("direct_url", "requirement"),
    [
        ({"url": "https://example.org/edgeclip-1-py3-none-any.whl", "archive_info": {}},
         "https://example.org/edgeclip-1-py3-none-any.whl"),
        ({"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
         f"git+https://example.org/r.git@{COMMIT}"),
        ({"url": "file:///r", "vcs_info": {"vcs": "git", "commit_id": COMMIT}, "subdirectory": "a/b"},
         f"git+file:///r@{COMMIT}#subdirectory=a/b"),
    ],
)  # fmt: skip
def test_a_url_is_named_as_a_direct_reference(direct_url: dict[str, Any], requirement: str) -> None:
    """PEP 508's `name @ url`: pip fetches the URL and asks no index for the name."""
    assert format_command(direct_url, None, "bench") == f"pip install 'edgeclip[bench] @ {requirement}'"


def test_where_the_source_is_unknown_or_gone_the_command_is_for_a_clone(tmp_path: Path) -> None:
    assert format_command({}, None, "bench") == ELSEWHERE
    assert format_command(url(tmp_path / "gone", dir_info={}), None, "bench") == ELSEWHERE
    assert format_command({}, tmp_path, "bench") == f"pip install '{tmp_path}[bench]'"


@pytest.mark.skipif(not SHELLS, reason="no shell of Unix here")
@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_passes_the_folder_on_as_it_is(tmp_path: Path, shell: str) -> None:
    folder = tmp_path / "o'neil's \"own\" $HOME `x` !1 & [c] *"
    folder.mkdir()
    command = format_command(url(folder, dir_info={}), None, "cpu")
    show = f"{sys.executable} -c 'import sys; print(sys.argv[1:])'"
    done = subprocess.run([shell, "-c", command.replace("pip", show, 1)], check=True, capture_output=True, text=True)
    assert done.stdout == f"{['install', f'{folder}[cpu]']}\n"


def test_windows_quotes_are_those_of_both_its_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert format_command(url(tmp_path, dir_info={}), None, "cpu") == f'pip install "{tmp_path}[cpu]"'


def test_here_it_names_what_is_installed() -> None:
    """The tests run from an editable installation of a clone, or a wheel of one."""
    assert re.fullmatch(r"pip install (-e )?['\".].*\[serve\]['\"].*", install_command("serve"))


def test_nothing_else_words_such_a_command() -> None:
    """Modules name other projects' packages alone; documents are for a clone's folder, `.[extra]`."""
    for path in ALL:
        if path.name == "installation.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert "edgeclip[" not in text, path
        others = r"pip install (\{|--|\"onnxruntime-gpu\[cuda,cudnn\]\"|tensorrt-cu)"
        assert len(re.findall("pip install", text)) == len(re.findall(others, text)), path


DOCUMENTS = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "runtime" / "edgeclip" / "triton_readme.md"]
DOCUMENTS += [path for folder in ("deploy", "docs", ".ci") for path in (ROOT / folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_asks_an_index_for_the_name(path: Path) -> None:
    asks = r"\b(pip|pipx|uv|poetry)\b[^\n`]*\b(install|add|run)\b[^\n`]* [\"']?edgeclip\b(?![-/.])"
    assert not re.search(asks, path.read_text(encoding="utf-8"))
