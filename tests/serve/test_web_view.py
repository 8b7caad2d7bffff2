"""What is seen on the page, in a real browser: the first screen, a picture large, and where the keyboard is."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from PIL import Image

from edgeclip import Encoder
from tests.conftest import DATA, Bundles
from tests.scenes.serving import serving
from tests.scenes.web_page import add, click, focused, names, opened, search, wait_for_focus, wait_for_pictures

if TYPE_CHECKING:
    from tests.scenes.browser import Browser

WEB = Path(__file__).parents[2] / "runtime" / "edgeclip" / "serve" / "web"
IMAGES = [DATA / "images" / name for name in ("gray.jpg", "rgb_odd.png", "exif_orientation.jpg")]
TEXT = "ein rotes Fahrrad"
MOST_BYTES = 10_000


class Markup(HTMLParser):
    """The sample pictures of a page by file, and its example texts, each with its language."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: dict[str, str] = {}
        self.texts: list[tuple[str, str]] = []
        self._language = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "img":
            self.pictures[str(found["src"])] = str(found["alt"])
        self._language = str(found.get("lang") or "") if tag == "button" else ""

    def handle_data(self, data: str) -> None:
        if self._language:
            self.texts.append((self._language, data))
            self._language = ""


MARKUP = Markup((WEB / "index.html").read_text(encoding="utf-8"))


def test_the_samples_are_what_the_demo_draws() -> None:
    """The files' pixels and their texts are those of `edgeclip_bench.demo.samples`; no file is large."""
    samples = pytest.importorskip("edgeclip_bench.demo.samples")
    from edgeclip_bench.demo.captions import captions

    wanted = {f"web/sample-{name}.png": captions(scene, "en")[0] for name, scene in samples.SAMPLES.items()}
    assert wanted == MARKUP.pictures
    assert {path.name for path in WEB.glob("*.png")} == {name.removeprefix("web/") for name in wanted}
    assert [
        (language, captions(samples.SAMPLES[name], language)[0]) for language, name in samples.EXAMPLES
    ] == MARKUP.texts
    for name in samples.SAMPLES:
        file = (WEB / f"sample-{name}.png").read_bytes()
        drawn = Image.open(io.BytesIO(samples.draw_sample(name)))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), np.asarray(drawn)), name
        assert len(file) < MOST_BYTES


@pytest.fixture(scope="module")
def scenes_url(trained_bundles: Bundles) -> "object":
    """A service of the small trained model."""
    folder = trained_bundles["cpu"]
    with Encoder.open(folder, device="cpu") as encoder, serving(folder, encoder) as url:
        yield url


def test_a_visitor_can_try_at_once(browser: "Browser", scenes_url: str) -> None:
    """One click on an example text reads the samples and finds the picture it tells of, in each language."""
    samples = pytest.importorskip("edgeclip_bench.demo.samples")
    page = opened(browser, scenes_url)
    assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert "Nothing" not in page.text("#status") and page.text("#intro").startswith("Add pictures")
    for number, (_, name) in enumerate(samples.EXAMPLES):
        click(page, f"#examples div :nth-child({number + 1})")
        wait_for_pictures(page, len(samples.SAMPLES))
        page.wait(f"document.querySelector('#results .name').textContent === '{name}.png'")
        assert page.run("document.activeElement.parentElement.parentElement.id") == "examples"
    assert page.run("document.getElementById('welcome').hidden")
    assert all(request.startswith((scenes_url, "blob:", "data:")) for request in page.requests)


def test_the_samples_are_used_and_removed(browser: "Browser", scenes_url: str) -> None:
    """By the button alone; and the first screen is back when all are removed."""
    page = opened(browser, scenes_url)
    click(page, "#use-samples")
    wait_for_pictures(page, 12)
    assert focused(page) == "query"
    assert page.run("document.querySelector('#results img').alt") == next(iter(MARKUP.pictures.values()))
    click(page, "#clear")
    page.wait("!document.getElementById('welcome').hidden && !document.querySelector('#results li')")
    assert focused(page) == "query"
    click(page, "#use-samples")
    wait_for_pictures(page, 12)


def test_own_pictures_take_the_place_of_the_examples(page: "Browser") -> None:
    add(page, IMAGES, 3)
    assert page.run("['welcome', 'examples', 'intro'].every((id) => document.getElementById(id).hidden)")


def test_a_picture_is_seen_large(page: "Browser") -> None:
    """By the keyboard alone: Enter opens it, arrows move, Escape closes, and the focus is where it was left."""
    add(page, IMAGES, 3)
    search(page, TEXT)
    order = names(page)
    click(page, "#results li:nth-child(2) button")
    assert page.run("document.querySelector('#view').open") and focused(page) == "view-close"
    assert page.text("#view-name") == order[1] == page.run("document.querySelector('#view img').alt")
    assert re.fullmatch(r"2 of 3 · cosine -?0\.\d{3}", page.text("#view-place"))
    page.press("Escape", 27)
    page.wait("!document.querySelector('#view').open")
    wait_for_focus(page, order[1])
    click(page, "#results li:nth-child(2) button")
    page.press("ArrowRight", 39)
    assert page.text("#view-name") == order[2]
    page.press("ArrowRight", 39)
    assert page.text("#view-name") == order[0]  # round the end
    page.press("ArrowLeft", 37)
    assert page.text("#view-name") == order[2]
    page.press("Escape", 27)
    page.wait("!document.querySelector('#view').open")
    wait_for_focus(page, order[2])


def test_similar_pictures_are_found_from_the_larger_view(page: "Browser") -> None:
    add(page, IMAGES, 3)
    click(page, "#results li:nth-child(3) button")
    click(page, "#view-similar")
    page.wait("document.querySelectorAll('#results .score:not([hidden])').length === 3")
    assert page.run("document.querySelector('#results .score').textContent") == "1.000"
    assert names(page)[0] == IMAGES[2].name
    wait_for_focus(page, IMAGES[2].name)


def test_the_focus_stays_on_its_picture(browser: "Browser", scenes_url: str, tmp_path: Path) -> None:
    """When its rank goes from the last to the first, and when pictures are added; cards are the same elements."""
    page = opened(browser, scenes_url)
    click(page, "#examples button")
    wait_for_pictures(page, 12)
    page.wait("document.querySelectorAll('#results .score:not([hidden])').length === 12")
    page.run("window.cards = [...document.querySelectorAll('#results li')]; cards.at(-1).firstChild.focus()")
    caption = focused(page)
    page.run(
        f"(() => {{ const query = document.getElementById('query'); query.value = {json.dumps(caption)}; "
        "query.dispatchEvent(new Event('input')); })()"
    )
    page.wait(f"document.getElementById('status').textContent.includes({json.dumps(caption)})")
    assert page.run("document.querySelector('#results img').alt") == caption == focused(page)
    assert page.run("cards.every((card) => card.isConnected)")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    add(page, [tmp_path / "red.png"], 13)
    assert focused(page) == caption


def test_the_page_works_by_the_keyboard_alone(page: "Browser") -> None:
    """Tab reaches everything in the order in which it is seen, and each has a visible focus."""
    add(page, IMAGES, 3)
    page.run("document.activeElement.blur(); scrollTo(0, 0)")
    reached = []
    for _ in range(20):
        page.press("Tab", 9)
        reached.append(focused(page))
        outline = page.run(
            "getComputedStyle(document.activeElement.matches('.hidden') ? "
            "document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
        )
        if reached[-1] == "nothing":
            reached[-1] = str(page.run("document.activeElement.textContent"))
        if page.run("document.activeElement === document.body"):
            break
        assert outline == "solid", reached
    assert reached[:-1] == ["API", "files", "folder", "query", "Search", "task", "clear", *names(page)]


def test_it_works_behind_a_path_prefix(browser: "Browser", bundle: Path, encoder: Encoder) -> None:
    """Nothing is asked for outside the prefix."""
    with serving(bundle, encoder, root_path="/ai/embed") as url:
        page = opened(browser, f"{url}/ai/embed")
        click(page, "#use-samples")
        wait_for_pictures(page, 12)
        assert len(search(page, TEXT)) == 12
        assert all(request.startswith((f"{url}/ai/embed/", "blob:", "data:")) for request in page.requests)
        page.open("about:blank")


def test_the_status_is_read_out_once(page: "Browser") -> None:
    """A live region, which is silent while pictures are read one after the other."""
    page.run(
        "window.said = []; new MutationObserver(() => said.push(document.getElementById('status').textContent))"
        ".observe(document.getElementById('status'), { childList: true }); 0"
    )
    add(page, IMAGES, 3)
    assert page.run("document.getElementById('status').getAttribute('aria-live')") == "polite"
    said = page.run("said")
    assert said[0] == "Reading 3 pictures." and said[1].startswith("3 pictures read in") and len(said) == 2


def test_a_sample_needs_no_key(bundle: Path, encoder: Encoder) -> None:
    """Like the page; and it comes as a PNG."""
    with serving(bundle, encoder, api_keys=("a-key-of-some-length",)) as url:
        answer = httpx.get(f"{url}/{next(iter(MARKUP.pictures))}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
