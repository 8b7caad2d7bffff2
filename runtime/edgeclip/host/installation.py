"""The command that adds an extra to this installation of edgeclip; every message takes it from here.

This project has no package of its name on an index, and the owner of that name there could run code on every machine
that installed it. So the command names the folder, file or URL that pip says edgeclip was installed from
(direct_url.json: https://packaging.python.org/en/latest/specifications/direct-url/).
"""

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from edgeclip.errors import MissingExtraError


def install_command(extra: str, option: str = "") -> str:
    """`pip install '/that/folder[extra]'`, quoted for this system's shells; `option` is an option of pip install.

    Where the source is unknown or gone, the command is for the folder of a clone, and says so.
    """
    return format_command(_direct_url(), _clone(), extra, option)


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Imports inside of this that find no package raise MissingExtraError, which names `extra` and what brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_package(error, extra) from error


def missing_package(error: ModuleNotFoundError, extra: str) -> MissingExtraError:
    """A message: the package that could not be imported, and the command that installs it (for onnxruntime, the extra
    `cpu`).
    """
    package = str(error.name).split(".")[0]
    command = install_command("cpu" if package == "onnxruntime" else extra)
    return MissingExtraError(f"{package} is not installed: `{command}`")


def format_command(direct_url: dict[str, Any], clone: Path | None, extra: str, option: str = "") -> str:
    """The command for the contents of direct_url.json ({} without one); without it, `clone` is the folder."""
    url = str(direct_url.get("url", ""))
    path = Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else clone
    words = ["pip install", *([option] if option else [])]
    if vcs := direct_url.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
        url += f"#subdirectory={direct_url['subdirectory']}" if "subdirectory" in direct_url else ""
        return " ".join([*words, _quote(f"edgeclip[{extra}] @ {url}")])
    if url and not url.startswith("file:"):
        return " ".join([*words, _quote(f"edgeclip[{extra}] @ {url}")])
    if path is None or not path.exists():
        return " ".join([*words, _quote(f".[{extra}]"), " # in the folder of edgeclip's source"])
    if direct_url.get("dir_info", {}).get("editable"):
        words.append("-e")
    return " ".join([*words, _quote(f"{path}[{extra}]")])


def _quote(text: str) -> str:
    """Quote for sh, bash, zsh and fish; on Windows for cmd and PowerShell, whose paths hold no double quote."""
    return f'"{text}"' if sys.platform == "win32" else shlex.quote(text)


def _direct_url() -> dict[str, Any]:
    try:
        found = json.loads(distribution("edgeclip").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _clone() -> Path | None:
    """The folder of the clone that this file lies in, as with PYTHONPATH=runtime; None in site-packages."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "runtime" / "edgeclip").is_dir() else None
