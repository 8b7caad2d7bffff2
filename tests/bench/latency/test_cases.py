"""What is measured, in which order, with which inputs; and what cannot be asked for."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeclip import Encoder
from edgeclip.errors import InputError
from edgeclip_bench.latency.cases import (
    Plan,
    cases_for,
    check_plan,
    make_image,
    make_text,
    offline_size,
    parse_numbers,
    parse_scenarios,
)


def test_cases_are_every_combination_in_an_order() -> None:
    """Eight at once are a query of multi-stream; offline knows no batch."""
    plan = Plan(
        scenarios=("offline", "single-stream", "multi-stream"), batches=(8, 1), tokens=(64, 16, 64), image_px=(512,)
    )
    found = [(case.scenario, case.name, case.batch) for case in cases_for(plan, 2)]
    assert found == [
        ("single-stream", "text, 16 tokens", 1),
        ("single-stream", "text, 16 tokens, batch 8", 8),
        ("single-stream", "text, 64 tokens", 1),
        ("single-stream", "text, 64 tokens, batch 8", 8),
        ("single-stream", "image, 512 px", 1),
        ("single-stream", "image, 512 px, batch 8", 8),
        ("multi-stream", "text, 16 tokens", 8),
        ("multi-stream", "text, 64 tokens", 8),
        ("multi-stream", "image, 512 px", 8),
        ("offline", "text, 16 tokens", 1),
        ("offline", "text, 64 tokens", 1),
        ("offline", "image, 512 px", 1),
    ]


def test_one_modality_alone() -> None:
    cases = list(cases_for(Plan(modalities=("image",)), 3))
    assert {case.modality for case in cases} == {"image"}
    assert {case.threads for case in cases} == {3}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batches": (0,)}, "--batch 0: wanted from 1 to 4096"),
        ({"tokens": (16, 2)}, "--tokens 2: wanted 3 or more"),
        ({"image_px": (30_000,)}, "--image-px 30000: wanted from 1 to 20000"),
        ({"threads": (0,)}, "--threads 0: wanted from 1 to 1024"),
        ({"seconds": 0.0}, "--seconds 0: wanted more than 0 and at most 3600"),
        ({"seconds": float("nan")}, "--seconds nan"),
        ({"scenarios": ("server",)}, "--scenario server: give --p99-ms"),
        ({"p99_ms": -1.0}, "--p99-ms -1: wanted a positive number"),
    ],
)
def test_what_cannot_be_measured_is_an_error(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Plan(**options)


def test_a_text_that_would_be_cut_is_an_error(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="--tokens 9000: the model takes at most 8192"):
        check_plan(Plan(tokens=(16, 9000)), encoder.manifest)
    check_plan(Plan(modalities=("image",), tokens=(9000,)), encoder.manifest)


@pytest.mark.parametrize("tokens", [3, 4, 16, 200])
def test_a_text_has_as_many_tokens_as_it_should(encoder: Encoder, tokens: int) -> None:
    def count(text: str) -> int:
        return encoder.prepare_texts(text).items[0].tokens

    assert count(make_text(tokens, count)) == tokens


def test_a_tokenizer_without_the_common_words_is_told() -> None:
    with pytest.raises(InputError, match="no text of 16 tokens"):
        make_text(16, lambda text: 2 + 3 * len(text))


@pytest.mark.parametrize("size", [1, 63, 300])
def test_an_image_is_a_jpeg_of_its_size(tmp_path: Path, size: int) -> None:
    path = make_image(tmp_path, size)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("JPEG", (size, size))
    written = path.stat().st_mtime_ns
    assert make_image(tmp_path, size).stat().st_mtime_ns == written


def test_an_offline_run_is_as_long_as_it_should_be() -> None:
    assert [offline_size(s, 1.0) for s in (0.01, 1.5, 1e-6)] == [100, 3, 2048]


def test_lists_are_parsed() -> None:
    assert parse_numbers("--batch", "8,1,8") == (8, 1)
    assert parse_scenarios("offline, single-stream") == ("single-stream", "offline")
    with pytest.raises(InputError, match="--batch '1,x': wanted whole numbers"):
        parse_numbers("--batch", "1,x")
    with pytest.raises(InputError, match="--scenario fast: wanted some of single-stream"):
        parse_scenarios("offline,fast")
