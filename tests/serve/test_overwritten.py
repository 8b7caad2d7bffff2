"""The service gives out no vector after its files changed or a graph broke, until the self-test passes again."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgeclip import Encoder, WrongVectorsError
from tests.runtime.bundle.test_watched_files import (
    WEIGHTS,
    half_as_long,
    half_written,
    in_place,
    inside,
    moved_file,
    nans,
    other_model,
    zeros,
)
from tests.scenes.serving import Troubled, serving, troubling, until_ready, wait_for


def post(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"input": "a"} | fields, timeout=60)


def is_refused(answer: httpx.Response) -> bool:
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "not_ready"
    assert int(answer.headers["retry-after"]) >= 1
    assert "/" not in answer.json()["error"]["message"].replace("and/or", "")
    return True


@pytest.mark.parametrize("write", [in_place, inside])
@pytest.mark.parametrize("content", [zeros, nans, other_model, half_written, half_as_long])
def test_overwritten_weights_are_503_until_the_right_ones_are_back(
    copied_bundle: Path, content: Callable[[bytes], bytes], write: Callable[[Path, bytes], None]
) -> None:
    if content is half_as_long and write is inside:
        pytest.skip("would be the right bytes")
    path = copied_bundle / WEIGHTS
    right = path.read_bytes()
    with Encoder.open(copied_bundle, device="cpu") as encoder, serving(copied_bundle, encoder, ready_s=0.05) as url:
        until_ready(url)
        wanted = post(url).json()["data"]
        write(path, content(right))
        for _ in range(3):
            assert is_refused(post(url))
        ready = httpx.get(f"{url}/health/ready")
        assert ready.status_code == 503
        assert f"{WEIGHTS} was overwritten in place" in ready.json()["reason"]
        assert str(copied_bundle) not in ready.text
        assert httpx.get(f"{url}/health/live").status_code == 200
        write(path, right)
        until_ready(url)
        assert post(url).json()["data"] == wanted


def test_a_probe_alone_sees_overwritten_weights(copied_bundle: Path) -> None:
    """By a stat, long before the next self-test would run, and whichever graph's they are."""
    path = copied_bundle / "vision.onnx_data"
    with Encoder.open(copied_bundle, device="cpu") as encoder, serving(copied_bundle, encoder, ready_s=600) as url:
        until_ready(url)
        inside(path, other_model(path.read_bytes()))
        assert httpx.get(f"{url}/health/ready", timeout=60).status_code == 503
        assert is_refused(post(url))  # a text: one file that changed is a bundle that is being copied


@pytest.mark.parametrize("change", [Path.touch, lambda path: path.chmod(0o644)])
def test_what_was_only_touched_is_read_and_is_ready_again(
    copied_bundle: Path, change: Callable[[Path], None]
) -> None:
    with Encoder.open(copied_bundle, device="cpu") as encoder, serving(copied_bundle, encoder, ready_s=0.05) as url:
        until_ready(url)
        change(copied_bundle / WEIGHTS)
        until_ready(url)
        assert post(url).status_code == 200


def test_a_bundle_that_is_replaced_by_rename_goes_on_being_served(
    copied_bundle: Path, trained_int8: Path, tmp_path: Path
) -> None:
    """With the self-test of the one that was opened, however often it is run."""
    with Encoder.open(copied_bundle, device="cpu") as encoder, serving(copied_bundle, encoder, ready_s=0.01) as url:
        until_ready(url)
        wanted = post(url).json()["data"]
        shutil.copytree(trained_int8, tmp_path / "new")
        copied_bundle.rename(tmp_path / "old")
        (tmp_path / "new").rename(copied_bundle)
        for _ in range(5):
            assert httpx.get(f"{url}/health/ready", timeout=60).status_code == 200
        assert post(url).json()["data"] == wanted


@pytest.fixture
def troubled(bundle: Path) -> Any:
    with troubling(bundle) as encoder:
        yield encoder


def test_a_vector_of_no_length_ends_the_trust_until_the_self_test_passes(bundle: Path, troubled: Troubled) -> None:
    """One request meets it; the others are refused too, by what the self-test says then."""

    def broken(graph: str, vectors: Any) -> Any:
        raise WrongVectorsError(f"the {graph} graph answered with a vector of length 0, wanted 1")

    with serving(bundle, troubled, ready_s=0.05) as url:
        until_ready(url)
        troubled.spoil = broken
        for _ in range(3):
            assert is_refused(post(url))
        assert "a vector of length 0" in httpx.get(f"{url}/health/ready").json()["reason"]
        troubled.spoil = lambda graph, vectors: vectors
        wait_for(lambda: post(url).status_code == 200)  # nobody needs to probe
        assert httpx.get(f"{url}/health/ready").status_code == 200


def test_a_self_test_that_is_wrong_refuses_requests_too(bundle: Path, troubled: Troubled) -> None:
    """Plausible vectors, that only the self-test knows to be wrong."""
    with serving(bundle, troubled, ready_s=0.05) as url:
        until_ready(url)
        troubled.spoil = lambda graph, vectors: np.roll(vectors, 1, axis=1)
        wait_for(lambda: httpx.get(f"{url}/health/ready").status_code == 503)
        assert is_refused(post(url))
        troubled.spoil = lambda graph, vectors: vectors
        wait_for(lambda: post(url).status_code == 200)


def test_a_vector_that_is_0_in_what_is_asked_for_is_refused(bundle: Path, troubled: Troubled) -> None:
    def empty(graph: str, vectors: Any) -> Any:
        vectors = np.zeros_like(vectors)
        vectors[:, 9] = 1
        return vectors

    with serving(bundle, troubled, ready_s=600) as url:
        until_ready(url)
        troubled.spoil = empty
        assert post(url, dimensions=16).status_code == 200
        assert is_refused(post(url, dimensions=8))


def test_weights_that_were_renamed_and_then_overwritten_are_503(copied_bundle: Path, trained_int8: Path) -> None:
    """A probe is ready after the rename alone, which docs/bundles.md recommends."""
    with Encoder.open(copied_bundle, device="cpu") as encoder, serving(copied_bundle, encoder, ready_s=600) as url:
        until_ready(url)
        mapped = moved_file(copied_bundle, trained_int8)
        assert httpx.get(f"{url}/health/ready", timeout=60).status_code == 200
        assert post(url).status_code == 200
        in_place(mapped, other_model(mapped.read_bytes()))
        assert httpx.get(f"{url}/health/ready", timeout=60).status_code == 503
        assert is_refused(post(url))
