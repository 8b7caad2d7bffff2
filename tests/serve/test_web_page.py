"""The page at /, in a real browser against a real server: what a user does, sees, and is told when it fails."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgeclip import Encoder
from tests.conftest import DATA
from tests.scenes.serving import serving
from tests.scenes.web_page import add, left_out, names, opened, search

if TYPE_CHECKING:
    from tests.scenes.browser import Browser

WEB = Path(__file__).parents[2] / "runtime" / "edgeclip" / "serve" / "web"
IMAGES = [DATA / "images" / name for name in ("gray.jpg", "rgb_odd.png")]
TEXT = "ein rotes Fahrrad"
KEY = "a-key-of-some-length"
# A score is shown with three digits.
SHOWN = 0.0006


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    """Works offline, and under a content security policy without exceptions."""
    for path in (path for path in WEB.iterdir() if path.suffix != ".png"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
    markup = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", markup)
    scripts = "".join(path.read_text(encoding="utf-8") for path in WEB.glob("*.js"))
    named = re.findall(r'(?:href|src)="web/([^"]+)"', markup) + re.findall(r'from "\./([^"]+)"', scripts)
    assert {path.name for path in WEB.iterdir()} == {"index.html", *named}


def test_every_field_has_a_label() -> None:
    markup = (WEB / "index.html").read_text(encoding="utf-8")
    fields = re.findall(r'<(?:input|select)[^>]*\sid="([^"]+)"', markup)
    assert fields and set(re.findall(r'<label[^>]*\sfor="([^"]+)"', markup)) == set(fields)


def test_every_element_that_the_script_wants_is_there() -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in WEB.glob("*.js"))
    wanted = set(re.findall(r'\bat\("([^"]+)"\)', scripts))
    assert wanted <= set(re.findall(r'\sid="([^"]+)"', (WEB / "index.html").read_text(encoding="utf-8")))


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_vectors_are_read_and_ranked(tmp_path: Path) -> None:
    import base64

    vectors = np.array([[0.6, 0.8], [0, 1], [1, 0]], "<f4")
    rows = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    shutil.copy(WEB / "vectors.js", tmp_path / "vectors.mjs")
    program = f"""
        import {{ rank, readVectors }} from "./vectors.mjs";
        const [query, ...rest] = {json.dumps(rows)}.map((embedding) => readVectors({{ embedding }}));
        const found = rank([{{ name: "a", vectors: rest[1] }}, {{ name: "b", vectors: rest[0] }}], query);
        console.log(JSON.stringify(found.map(({{ picture, score }}) => [picture.name, score])));
    """
    (tmp_path / "run.mjs").write_text(program)
    done = subprocess.run(["node", tmp_path / "run.mjs"], check=True, capture_output=True, text=True)
    (first, high), (second, low) = json.loads(done.stdout)
    assert (first, second) == ("b", "a") and (high, low) == (pytest.approx(0.8), pytest.approx(0.6))


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_maxsim_is_the_librarys(tmp_path: Path) -> None:
    """Of questions and pages of any number of vectors; a score that is known is not computed again."""
    import base64

    from edgeclip import MultiVectors

    draw = np.random.default_rng(3)
    lengths = (7, 1, 300, 40)
    given = [draw.normal(size=(length, 16)).astype("<f4") for length in lengths]
    rows = [[base64.b64encode(vector.tobytes()).decode() for vector in matrix] for matrix in given]
    shutil.copy(WEB / "vectors.js", tmp_path / "vectors.mjs")
    program = f"""
        import {{ compare, rank, readVectors, thinned }} from "./vectors.mjs";
        const [question, ...pages] = {json.dumps(rows)}.map((embeddings) => readVectors({{ embeddings }}));
        const scores = pages.map((page) => compare(question, page));
        const picture = {{ vectors: pages[0] }};
        const [[first], [again]] = [rank([picture], question), rank([picture], question)];
        picture.scored.score = 5;
        const [known] = rank([picture], question);
        picture.vectors = pages[1];
        const [fresh] = rank([picture], question);
        const found = [first, again, known, fresh].map(({{ score }}) => score);
        console.log(JSON.stringify([scores, ...found, thinned(pages[1]).numbers.length]));
    """
    (tmp_path / "run.mjs").write_text(program)
    done = subprocess.run(["node", tmp_path / "run.mjs"], check=True, capture_output=True, text=True)
    scores, first, again, known, fresh, thin = json.loads(done.stdout)
    wanted = MultiVectors.of(given[:1]).maxsim(MultiVectors.of(given[1:]))[0]
    assert np.abs(np.array(scores) - wanted).max() < 1e-4
    assert (first, again, known, fresh, thin) == (scores[0], scores[0], 5, scores[1], 32 * 16)


def test_what_is_found_is_what_the_encoder_finds(page: "Browser", page_url: str, encoder: Encoder) -> None:
    """By the button of files and the keyboard; with the times, and without a complaint of the browser's."""
    page.wait("document.title.startsWith('edgeclip · ')")
    add(page, IMAGES, 2)
    found = search(page, TEXT)
    scores = encoder.encode_image(IMAGES) @ encoder.encode_text(TEXT)
    wanted = sorted(zip([path.name for path in IMAGES], scores, strict=True), key=lambda pair: -pair[1])
    assert [name for name, _ in found] == [name for name, _ in wanted]
    assert max(abs(a - b) for (_, a), (_, b) in zip(found, wanted, strict=True)) <= SHOWN
    assert re.search(r"2 pictures ranked .* [\d.]+ ms on the server, \d+ ms until here", page.text("#status"))
    assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.errors == []
    assert all(request.startswith((page_url, "blob:", "data:")) for request in page.requests)


def test_the_instruction_is_used_when_it_is_chosen(page: "Browser", encoder: Encoder) -> None:
    page.wait("!document.getElementById('task-choice').hidden")
    add(page, IMAGES[:1], 1)
    page.run("document.getElementById('task').value = 'retrieval.query'")
    ((_, score),) = search(page, TEXT)
    image = encoder.encode_image(IMAGES[0])
    plain, instructed = (float(image @ encoder.encode_text(TEXT, task=task)) for task in (None, "retrieval.query"))
    assert abs(plain - instructed) > 2 * SHOWN
    assert abs(score - instructed) <= SHOWN


def test_a_text_that_is_too_long_is_cut_and_that_is_said(page: "Browser") -> None:
    """The service would refuse it; the page asks for the cut."""
    add(page, IMAGES[:1], 1)
    page.run("document.getElementById('query').value = 'sheep '.repeat(9000)")
    page.run("document.getElementById('search').requestSubmit()")
    page.wait("document.getElementById('status').textContent.includes('The text was too long and was cut.')")


def test_right_to_left_text_is_written_so(page: "Browser") -> None:
    add(page, IMAGES[:1], 1)
    assert len(search(page, "دراجة حمراء")) == 1
    assert page.run("getComputedStyle(document.getElementById('query')).direction") == "rtl"


def test_pictures_are_dropped_and_pasted(page: "Browser") -> None:
    """One that came before does not come twice, and what is dropped and is no file is said to be none."""
    script = """(async () => {
        const canvas = new OffscreenCanvas(8, 8);
        canvas.getContext("2d").fillRect(0, 0, 4, 4);
        const blob = await canvas.convertToBlob();
        const transfer = new DataTransfer();
        transfer.items.add(new File([blob], "dropped.png", { type: "image/png", lastModified: 1 }));
        const drop = { bubbles: true, cancelable: true, dataTransfer: transfer };
        document.body.dispatchEvent(new DragEvent("drop", drop));
        const pasted = new DataTransfer();
        pasted.items.add(new File([blob], "pasted.png", { type: "image/png", lastModified: 1 }));
        for (let times = 0; times < 2; times++)
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: pasted }));
    })()"""
    page.run(script)
    page.wait("document.querySelectorAll('#results li').length === 2 && document.getElementById('work').hidden")
    assert sorted(names(page)) == ["dropped.png", "pasted.png"]
    page.run(
        "document.body.dispatchEvent(new DragEvent('drop', "
        "{ bubbles: true, cancelable: true, dataTransfer: new DataTransfer() }))"
    )
    page.wait("document.getElementById('problems').textContent.includes('is not a file')")


def test_a_bad_picture_is_named_and_its_company_is_taken(page: "Browser", tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    add(page, [IMAGES[0], tmp_path / "broken.png", IMAGES[1]], 2)
    (told,) = left_out(page).items()
    assert told[0] == "broken.png" and "damaged" in told[1] and "input[" not in told[1]
    assert page.text("#status").startswith("2 pictures read") and "1 file was left out" in page.text("#status")


def test_a_key_is_asked_for_and_used(browser: "Browser", bundle: Path, encoder: Encoder) -> None:
    with serving(bundle, encoder, api_keys=(KEY,)) as url:
        page = opened(browser, url)
        page.wait("!document.getElementById('key-form').hidden")
        page.choose_files("#files", IMAGES)
        page.wait("document.getElementById('progress-text').textContent.includes('wants a key first. 0 of 2 read')")
        for key, is_right in (("another-key", False), (KEY, True)):
            page.run("document.getElementById('key').focus(); document.getElementById('key').select()")
            page.type(key)
            page.press("Enter", 13)
            if not is_right:
                page.wait("document.getElementById('problems').textContent.includes('does not take this key')")
        page.wait("document.querySelectorAll('#results li').length === 2")
        assert page.run("document.getElementById('key-form').hidden")
        assert len(search(page, TEXT)) == 2
        page.open("about:blank")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_small_screen_and_can_be_read(page: "Browser", scheme: str) -> None:
    """No sideways scrolling at 360 pixels; a contrast of 4.5 (WCAG AA) in the light and in the dark."""
    page.prefer(scheme)
    page.resize(360, 700)
    assert page.run("document.documentElement.scrollWidth") == 360
    add(page, IMAGES, 2)
    search(page, TEXT)
    assert page.run("document.documentElement.scrollWidth") == 360
    colours = page.run(
        "['body', '#status', 'button[type=submit]', '#results .name', '#clear', 'a', '.button.second'].map((s) => { "
        "const e = document.querySelector(s); let b = e; "
        "while (getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement; "
        "return [s, getComputedStyle(e).color, getComputedStyle(b).backgroundColor]; })"
    )
    for selector, ink, back in colours:
        assert contrast(ink, back) >= 4.5, (selector, ink, back)
    assert contrast(colours[0][2], "rgb(255, 255, 255)") < 2 or scheme == "dark"


def contrast(first: str, second: str) -> float:
    """WCAG 2's contrast of two CSS colours."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = np.array(re.findall(r"\d+", colour)[:3], float) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
