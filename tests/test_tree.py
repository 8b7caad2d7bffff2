"""docs/tree.md has a line for each module, taken from its docstring; `pytest --bless` writes it anew."""

import ast
from pathlib import Path

import pytest

from tests.conftest import DATA

ROOT = DATA.parents[1]
TREE = ROOT / "docs" / "tree.md"
SOURCES = (
    ("runtime/edgeclip", "the lean runtime, the command line and the service"),
    ("export/edgeclip_graph", "ONNX graphs without torch, for export and for quantising"),
    ("export/edgeclip_export", "a checkpoint to a bundle"),
    ("quant/edgeclip_quant", "a bundle to a smaller one"),
    ("bench/edgeclip_bench", "latency, quality, rivals, and the demo"),
)
HEAD = """# The tree

To read the code, begin at `runtime/edgeclip/encoder.py`: all steps of a text and of an image can be followed from
there. Below is a line for each module: the first sentence of its docstring.

- `tests/` has the same folders; what is not a test lies in `tests/scenes`, the reference's goldens in `tests/data`.
- `tests/runtime` needs the wheel with `[cpu,images]` and pytest alone; tests of the runtime that need torch, onnx or
  another package of the house lie in `tests/with_torch`.
- `deploy/` has containers, compose, systemd and Kubernetes.
- `bench/results/` has the JSON behind every figure; `bench/gpu_check.sh` runs all that needs a GPU.

This file is written by `pytest tests/test_tree.py --bless`.
"""


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".:")


def tree() -> str:
    """The document as it should be."""
    parts = [HEAD]
    for folder, about in SOURCES:
        lines = [f"## {folder}: {about}", ""]
        for path in sorted((ROOT / folder).rglob("*.py"), key=lambda path: (path.parent, path.name)):
            if sentence := first_sentence(path):
                lines.append(f"- `{path.relative_to(ROOT / folder)}`: {sentence}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def test_the_tree_is_what_lies_there(request: pytest.FixtureRequest) -> None:
    wanted = tree()
    if request.config.getoption("--bless"):
        TREE.write_text(wanted, encoding="utf-8")
    assert TREE.read_text(encoding="utf-8") == wanted, "renew it with pytest tests/test_tree.py --bless"
    assert wanted.count("\n- ") > 200
