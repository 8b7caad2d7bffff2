"""What a user does at the page: opens it, adds pictures, searches."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.scenes.browser import Browser


def opened(browser: "Browser", url: str) -> "Browser":
    """The page, opened anew, on a wide screen."""
    browser.errors.clear()
    browser.requests.clear()
    browser.resize(1200, 800)
    browser.open(f"{url}/")
    return browser


def add(page: "Browser", paths: list[Path], count: int, *, by: str = "#files") -> None:
    """Choose files or a folder, and wait until `count` pictures are shown and nothing is read any more."""
    page.choose_files(by, paths)
    wait_for_pictures(page, count)


def wait_for_pictures(page: "Browser", count: int) -> None:
    """Until `count` pictures are shown and nothing is read any more."""
    page.wait(
        f"document.querySelectorAll('#results li').length === {count} && document.getElementById('work').hidden"
    )


def names(page: "Browser") -> list[str]:
    """Of the pictures that are shown, in their order."""
    return list(page.run("[...document.querySelectorAll('#results .name')].map((name) => name.textContent)"))


def left_out(page: "Browser") -> dict[str, str]:
    """The files that were left out, and why; and "hidden", how many."""
    lines = page.run("[...document.querySelectorAll('#left-out-names li')].map((line) => line.textContent)")
    return {name.strip("\u2068\u2069"): why for name, _, why in (line.partition(": ") for line in lines)}


_FOCUSED = "(document.activeElement.id || document.activeElement.querySelector('img')?.alt || 'nothing')"


def focused(page: "Browser") -> str:
    """The id of what has the focus, or else the alternative text of the picture on it."""
    return str(page.run(_FOCUSED))


def wait_for_focus(page: "Browser", wanted: str) -> None:
    """Until `focused` is that."""
    page.wait(f"{_FOCUSED} === {json.dumps(wanted)}")


def click(page: "Browser", selector: str) -> None:
    """As a user of the keyboard does: focus, then Enter."""
    page.run(f"document.querySelector({json.dumps(selector)}).focus()")
    page.press("Enter", 13)


def search(page: "Browser", text: str) -> list[tuple[str, float]]:
    """What is found: names and scores, in their order."""
    page.run("document.getElementById('query').focus(); document.getElementById('query').select()")
    page.type(text)
    page.press("Enter", 13)
    page.wait(f"document.getElementById('status').textContent.includes({json.dumps(text)})")
    rows = page.run(
        "[...document.querySelectorAll('#results li p')].map((p) => [...p.children].map((s) => s.textContent))"
    )
    return [(name, float(score)) for name, score in rows]
