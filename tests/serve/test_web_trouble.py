"""The page when the server is restarted, busy or gone while pictures are read, in a real browser."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from edgeclip import Encoder
from tests.conftest import DATA
from tests.scenes.serving import Troubled, depth, serving, troubling, wait_for
from tests.scenes.web_page import add, click, focused, names, opened, search, wait_for_pictures

if TYPE_CHECKING:
    from tests.scenes.browser import Browser

IMAGES = [DATA / "images" / name for name in ("gray.jpg", "rgb_odd.png")]
TEXT = "ein rotes Fahrrad"
# A score is shown with three digits.
SHOWN = 0.0006


@pytest.fixture
def slow(bundle: Path) -> Iterator[Troubled]:
    """An encoder that takes a quarter of a second for a batch of pictures."""

    def after_a_while(graph: str, vectors: Any) -> Any:
        time.sleep(0.25 if graph == "vision" else 0)
        return vectors

    with troubling(bundle) as encoder:
        encoder.spoil = after_a_while
        yield encoder


@pytest.fixture
def copies(tmp_path: Path) -> list[Path]:
    """Twenty files of one picture."""
    paths = [tmp_path / f"{number:02}.png" for number in range(20)]
    for path in paths:
        shutil.copy(IMAGES[1], path)
    return paths


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def progress(page: "Browser") -> tuple[int, int, int]:
    """How many are done, of how many, and how many are left."""
    found = re.search(r"(\d+) of (\d+) read, (\d+) left", page.text("#progress-text"))
    assert found
    done, total, left = map(int, found.groups())
    return done, total, left


def until(page: "Browser", text: str) -> None:
    page.wait(f"document.getElementById('progress-text').textContent.includes({text!r})")


def test_a_restart_loses_nothing(browser: "Browser", bundle: Path, slow: Troubled, copies: list[Path]) -> None:
    """It says how many are left and which, keeps what was read, and goes on when somebody says so."""
    with serving(bundle, slow) as url:
        page = opened(browser, url)
        page.choose_files("#files", copies)
        page.wait("document.getElementById('progress').value >= 4")
    until(page, "does not answer")
    done, total, left = progress(page)
    assert 4 <= done < 20 and (total, left) == (20, 20 - done)
    assert names(page) == [path.name for path in copies[:done]]
    assert "Trying again in" in page.text("#progress-text") and page.text("#go-on") == "Try now"
    click(page, "#stop")
    until(page, f"Not read yet: \u2068{copies[done].name}\u2069")
    assert page.text("#go-on") == "Go on" and focused(page) == "go-on"
    assert f"{left} pictures not read yet" in page.text("#status")
    with serving(bundle, slow, port=port_of(url)):
        click(page, "#go-on")
        wait_for_pictures(page, 20)
        assert names(page) == [path.name for path in copies]
        assert len(search(page, TEXT)) == 20
        page.open("about:blank")


def test_a_restart_is_bridged(browser: "Browser", bundle: Path, slow: Troubled, copies: list[Path]) -> None:
    """A server that comes back is found again without a hand."""
    with serving(bundle, slow) as url:
        page = opened(browser, url)
        page.choose_files("#files", copies)
        page.wait("document.getElementById('progress').value >= 4")
    until(page, "does not answer")
    with serving(bundle, slow, port=port_of(url)):
        wait_for_pictures(page, 20)
        assert page.text("#problems") == ""
        page.open("about:blank")


def test_a_server_that_stays_away_is_given_up(browser: "Browser", bundle: Path, encoder: Encoder) -> None:
    """After six tries, further and further apart; what is left can be tried again or left."""
    with serving(bundle, encoder) as url:
        page = opened(browser, url)
        page.wait("document.title.startsWith('edgeclip · ')")
    page.run(
        "window.waits = []; const real = setTimeout; "
        "window.setTimeout = (call, ms) => { if (ms >= 1000) waits.push(ms); return real(call, ms / 100); }; 0"
    )
    page.choose_files("#files", IMAGES)
    until(page, "What was read is kept")
    assert page.run("waits") == [1000, 2000, 4000, 8000, 16000]
    assert "does not answer" in page.text("#progress-text") and progress(page) == (0, 2, 2)
    click(page, "#drop-rest")
    page.wait("document.getElementById('work').hidden")
    assert page.text("#status") == "No pictures yet." and focused(page) == "query"


def test_a_busy_server_is_waited_for(browser: "Browser", bundle: Path, copies: list[Path]) -> None:
    """As long as its Retry-After says; then the pictures are read."""
    with troubling(bundle) as troubled, serving(bundle, troubled, max_images=4, max_queued_images=4) as url:
        page = opened(browser, url)
        troubled.may_run.clear()
        image = {"image": "data:image/png;base64," + as_base64(IMAGES[1])}
        body = {"model": "m", "input": [image] * 4}
        other = threading.Thread(
            target=httpx.post, args=(f"{url}/v1/embeddings",), kwargs={"json": body, "timeout": 60}
        )
        other.start()
        wait_for(lambda: depth(url, "vision") > 0)
        page.choose_files("#files", copies[:8])
        until(page, "Trying again in")
        assert progress(page) == (0, 8, 8)
        troubled.may_run.set()
        other.join()
        wait_for_pictures(page, 8)
        page.open("about:blank")


def as_base64(path: Path) -> str:
    import base64

    return base64.b64encode(path.read_bytes()).decode()


def test_stopping_keeps_what_was_read(browser: "Browser", bundle: Path, slow: Troubled, copies: list[Path]) -> None:
    """And a file that is added later is read with what was left."""
    with serving(bundle, slow) as url:
        page = opened(browser, url)
        page.choose_files("#files", copies[:12])
        page.wait("document.getElementById('progress').value >= 4")
        click(page, "#stop")
        until(page, "Stopped.")
        done, _, left = progress(page)
        assert len(names(page)) == done and left == 12 - done
        page.choose_files("#files", copies[12:13])
        wait_for_pictures(page, 13)
        page.open("about:blank")


def test_vectors_of_two_models_are_not_mixed(
    browser: "Browser", bundle: Path, int8_bundle: Path, encoder: Encoder, tmp_path: Path
) -> None:
    """After a restart with another bundle the old pictures are not ranked, until they are read again."""
    shutil.copy(IMAGES[1], tmp_path / "new.png")
    with serving(bundle, encoder) as url:
        page = opened(browser, url)
        add(page, IMAGES, 2)
        search(page, TEXT)
    with (
        Encoder.open(int8_bundle, device="cpu") as other,
        serving(int8_bundle, other, port=port_of(url), model_name="another", is_model_checked=True),
    ):
        page.choose_files("#files", [tmp_path / "new.png"])
        page.wait("!document.getElementById('reread').hidden && document.title === 'edgeclip · another'")
        assert "runs another model now, and 2 pictures have vectors of the one before" in page.text("#progress-text")
        page.wait("document.getElementById('status').textContent.includes('1 picture ranked')")
        assert page.run("document.querySelectorAll('#results .score:not([hidden])').length") == 1
        assert names(page)[0] == "new.png"
        click(page, "#reread")
        page.wait("document.querySelectorAll('#results .score:not([hidden])').length === 3")
        found = dict(search(page, TEXT))
        text = other.encode_text(TEXT)
        for path in (*IMAGES, tmp_path / "new.png"):
            assert abs(found[path.name] - float(other.encode_image(path) @ text)) <= SHOWN
            before = float(encoder.encode_image(path) @ encoder.encode_text(TEXT))
            assert abs(found[path.name] - before) > 2 * SHOWN
        page.open("about:blank")


def test_an_answer_names_the_bundle(bundle: Path, int8_bundle: Path, encoder: Encoder) -> None:
    """The same at every start of one bundle, another for another one, whatever the model's name."""
    found = []
    with Encoder.open(int8_bundle, device="cpu") as other:
        for folder, one, name in ((bundle, encoder, "a"), (bundle, encoder, "b"), (int8_bundle, other, "a")):
            with serving(folder, one, model_name=name) as url:
                answer = httpx.post(f"{url}/v1/embeddings", json={"model": name, "input": TEXT})
                found.append(answer.headers["Edgeclip-Bundle"])
    assert found[0] == found[1] != found[2]
    assert np.all([re.fullmatch("[0-9a-f]{16}", one) for one in found])
