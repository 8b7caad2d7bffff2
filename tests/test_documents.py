"""Every link and every result file that README.md and docs/ name exists; README.md stays short."""

import re
from pathlib import Path

import pytest

from edgeclip_bench.cases import CASES
from tests.conftest import DATA

ROOT = DATA.parents[1]
DOCUMENTS = (
    *(ROOT / name for name in ("README.md", "deploy/README.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CASE = re.compile(r"edgeclip bench ([a-z]+-[a-z-]+|compare|damage|mteb|rivals)\b")
README_LINES = 150


def without_code(text: str) -> str:
    """A Markdown text without its fenced blocks, in which `#` begins a comment and brackets are no links."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = HEADING.findall(without_code(document.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path, text: str) -> list[str]:
    """The relative links in `text` that lead from `document` to no file, or to no heading of it."""
    broken = []
    for link in LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](nothing.md) [b](docs/figures.md#no-such-heading) [c](docs/figures.md#memory-and-opening) [d](https://a.b)"
    assert broken_links(ROOT / "README.md", text) == ["nothing.md", "docs/figures.md#no-such-heading"]


def test_every_result_is_quoted_and_every_quoted_result_exists() -> None:
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS if path.name != "CHANGELOG.md"]
    quoted = {name for text in texts for name in re.findall(r"bench/results/([\w.]+\.json)", text)}
    assert quoted == {path.name for path in (ROOT / "bench" / "results").glob("*.json")}


def test_every_benchmark_that_a_page_runs_is_a_case() -> None:
    """And no page runs a module, for all that users run is a verb."""
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS if path.name != "tree.md"]
    names = {name for text in texts for name in CASE.findall(text) if not name.startswith("jina-clip")}
    assert len(names) > 10 and names <= set(CASES)
    assert [text for text in texts if "python -m edgeclip" in text] == []


def test_the_readme_is_short_and_names_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= README_LINES
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in readme] == []
