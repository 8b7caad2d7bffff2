"""No batch that encoder, service or Triton may form lies outside a TensorRT profile; every input goes once."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.encoder import Encoder
from edgeclip.engine.batch_policy import (
    CAPTURED_IMAGES,
    CAPTURED_TOKENS,
    CPU_IMAGES,
    CPU_TOKENS,
    GPU_TOKENS,
    MOST_IMAGES,
    BatchPolicy,
    Kind,
    Profiles,
    Purpose,
    Shape,
    is_captured,
    is_oversized,
    kind_of,
    slot_rows,
)
from edgeclip.engine.devices import PROVIDERS, Device
from edgeclip.engine.opening import GraphToOpen, open_graph
from edgeclip.errors import InputError
from edgeclip.families.family import Item
from edgeclip.manifest import Manifest
from edgeclip.triton import model_config
from tests.scenes.triton_config import pairs, parse

PURPOSES: tuple[Purpose, ...] = ("throughput", "latency", "uniform")
PLAIN = BatchPolicy(tokens=CPU_TOKENS, images=CPU_IMAGES)
Ends = list[tuple[Shape, Shape]]


def text(length: int, *, needs_mask: bool = False, adapter: str | None = None) -> Item:
    """A text of so many tokens, as `edgeclip.families.token_texts` makes them."""
    ids = np.zeros(length, np.int64)
    alike = (length, needs_mask)
    return Item(graph="text", arrays={"input_ids": ids}, tokens=length, alike=alike, adapter=adapter)


def image(side: int) -> Item:
    """An image of one size."""
    pixels = np.zeros((side, side, 3), np.uint8)
    return Item(graph="vision", arrays={"pixel_values": pixels}, tokens=1, alike=pixels.shape)


def text_rows(policy: BatchPolicy, length: int) -> int:
    """The most texts of so many tokens in a batch."""
    return policy.rows(Kind(length, "text"))


@pytest.fixture
def manifest(encoder: Encoder) -> Manifest:
    assert encoder.manifest.need_text().max_length == 8192
    return encoder.manifest


def ends(profiles: Profiles | None) -> Ends:
    """The smallest and the largest shape of every profile."""
    assert profiles is not None
    return list(zip(profiles.min, profiles.max, strict=True))


def lies_within(shape: Shape, least: Shape, most: Shape) -> bool:
    return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))


def assert_fits(shape: Shape, profiles: Ends) -> None:
    """In one profile and in no other, so it is no chance which of them runs it."""
    assert sum(lies_within(shape, *ends) for ends in profiles) == 1, f"{shape} lies in none of {profiles}"


def engine_profiles(manifest: Manifest, graph: str) -> Ends:
    """Those of the engine that an Encoder builds, which the service's lanes run too."""
    return ends(BatchPolicy.choose("tensorrt", manifest, "throughput").profiles(graph))


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100, 10**9])
def test_no_batch_of_the_encoder_lies_outside_a_profile(manifest: Manifest, batch_size: int | None) -> None:
    """Texts of every length, as many as make a full batch and one more; images up to several batches."""
    policy, texts = BatchPolicy.choose("tensorrt", manifest, "throughput"), engine_profiles(manifest, "text")
    for length in range(2, 8193):
        for batch in policy.plan([text(length)] * (text_rows(policy, length) + 1), batch_size):
            assert_fits((len(batch), length), texts)
    images, pixels = (
        engine_profiles(manifest, "vision"),
        (manifest.need_image().size_px, manifest.need_image().size_px, 3),
    )
    for count in range(1, 100):
        for group in policy.plan_images(count, batch_size):
            assert_fits((len(group), *pixels), images)
        for batch in policy.plan([image(8)] * count, batch_size):
            assert_fits((len(batch), *pixels), images)


def exported_profiles(config: Any) -> Ends:
    """What config.pbtxt gives TensorRT."""
    (accelerator,) = config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    options = pairs(accelerator["parameters"])

    def shapes(end: str) -> list[Shape]:
        texts = options[f"trt_profile_{end}_shapes"].split(",")
        return [tuple(map(int, text.partition(":")[2].split("x"))) for text in texts]

    return list(zip(shapes("min"), shapes("max"), strict=True))


def test_no_batch_that_triton_may_form_lies_outside_a_profile(manifest: Manifest) -> None:
    """Of every length, every number of texts up to max_batch_size; and every number of images."""
    manifest = dataclasses.replace(manifest, target="tensorrt")
    config = parse(model_config(manifest, "text"))
    assert config["max_batch_size"] > 1
    profiles = exported_profiles(config)
    for length in range(2, 8193):
        for count in range(1, config["max_batch_size"] + 1):
            assert_fits((count, length), profiles)
    config = parse(model_config(manifest, "vision"))
    side = manifest.need_image().size_px
    for count in range(1, config["max_batch_size"] + 1):
        assert_fits((count, side, side, 3), exported_profiles(config))


@pytest.mark.parametrize("kind", PROVIDERS)
@pytest.mark.parametrize("purpose", PURPOSES)
def test_every_device_has_a_bounded_batch_for_every_shape(kind: str, purpose: Purpose, manifest: Manifest) -> None:
    """A user's max_batch lowers each of them and raises none; texts stay within their tokens, but a single one."""
    policy = BatchPolicy.choose(kind, manifest, purpose)
    lowered, raised = (BatchPolicy.choose(kind, manifest, purpose, max_batch=size) for size in (3, 10**9))
    for one in (*(Kind(length, "text") for length in range(2, 8193)), Kind(1, "vision")):
        most = policy.rows(one)
        assert most >= 1 and lowered.rows(one) == min(most, 3) and raised.rows(one) == most
        if one.graph == "text" and purpose != "uniform":
            assert most == 1 or most * one.cost <= GPU_TOKENS
    assert (policy.profiles("text") is not None) == (policy.profiles("vision") is not None) == (kind == "tensorrt")


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_batch_on_cuda_fits_a_slot(purpose: Purpose, manifest: Manifest) -> None:
    """So `edgeclip.engine.cuda.bound_runs` need not cut it. Triton has no slots."""
    policy = BatchPolicy.choose("cuda", manifest, purpose)
    if purpose != "uniform":
        for length in range(2, 8193):
            assert text_rows(policy, length) <= slot_rows("text")
            assert text_rows(policy, length) * length <= GPU_TOKENS
    assert policy.rows(Kind(1, "vision")) <= slot_rows("vision")


@pytest.mark.parametrize("purpose", ["throughput", "uniform"])
@pytest.mark.parametrize("graph", ["text", "vision"])
def test_a_profile_is_best_somewhere_inside_it(graph: str, purpose: Purpose, manifest: Manifest) -> None:
    profiles = BatchPolicy.choose("tensorrt", manifest, purpose).profiles(graph)
    assert profiles is not None and len(profiles.min) == len(profiles.opt) == len(profiles.max) >= 2
    for least, best, most in zip(profiles.min, profiles.opt, profiles.max, strict=True):
        assert lies_within(best, least, most)


def test_profiles_are_spelled_as_onnxruntime_wants_them(manifest: Manifest) -> None:
    """https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html#explicit-shape-range"""
    profiles = BatchPolicy.choose("tensorrt", manifest, "throughput").profiles("text")
    assert profiles is not None
    assert profiles.options("input_ids") == {
        "trt_profile_min_shapes": "input_ids:1x2,input_ids:1x65,input_ids:1x513",
        "trt_profile_opt_shapes": "input_ids:1x16,input_ids:1x512,input_ids:1x8192",
        "trt_profile_max_shapes": "input_ids:256x64,input_ids:32x512,input_ids:2x8192",
    }


@pytest.mark.parametrize("shape", [(1000, 2), (300, 64), (33, 65), (3, 8192), (1, 8192), (0, 5)])
def test_a_batch_that_is_formed_by_hand_is_cut_into_parts_that_fit(shape: Shape, manifest: Manifest) -> None:
    """Every row goes once and in its place."""
    parts = BatchPolicy.choose("tensorrt", manifest, "throughput").parts("text", shape)
    assert [row for part in parts for row in range(*part.indices(shape[0]))] == list(range(shape[0]))
    for part in parts:
        assert_fits((part.stop - part.start, *shape[1:]), engine_profiles(manifest, "text"))


@pytest.mark.parametrize("count", [0, 1, 32, 33, 100])
def test_images_that_come_as_one_batch_are_cut_into_parts_that_fit(count: int, manifest: Manifest) -> None:
    side = manifest.need_image().size_px
    parts = BatchPolicy.choose("tensorrt", manifest, "throughput").parts("vision", (count, side, side, 3))
    assert [row for part in parts for row in range(*part.indices(count))] == list(range(count))
    for part in parts:
        assert_fits((part.stop - part.start, side, side, 3), engine_profiles(manifest, "vision"))


@pytest.mark.parametrize(
    ("graph", "shape", "found"),
    [
        ("text", (1, 1), "found a text of 1 tokens, wanted 2 to 8192"),
        ("text", (2, 8193), "found a text of 8193 tokens, wanted 2 to 8192"),
        ("text", (1, 64, 64, 3), "found a batch of shape (1, 64, 64, 3), wanted ids (B, T)"),
        ("text", (5,), "found a batch of shape (5,), wanted ids (B, T)"),
        ("vision", (1, 40, 40, 3), "found a batch of shape (1, 40, 40, 3), wanted pixels (B, 64, 64, 3)"),
        ("vision", (2, 5), "found a batch of shape (2, 5), wanted pixels (B, 64, 64, 3)"),
    ],
)
def test_a_batch_that_fits_no_profile_is_refused(graph: str, shape: Shape, found: str, manifest: Manifest) -> None:
    with pytest.raises(InputError) as caught:
        BatchPolicy.choose("tensorrt", manifest, "throughput").parts(graph, shape)
    assert found in str(caught.value) and "\n" not in str(caught.value)
    assert len(BatchPolicy.choose("cpu", manifest, "throughput").parts(graph, shape)) == 1  # the graph decides there


def test_a_session_runs_a_large_batch_in_parts_and_joins_them(encoder: Encoder, bundle: Path) -> None:
    """As it would with TensorRT; here on the CPU, with TensorRT's policy."""
    session = open_graph(
        GraphToOpen(
            path=bundle / "text.onnx", graph="text", device=Device(kind="cpu"), threads=1, manifest=encoder.manifest
        )
    )
    ids = np.random.default_rng(0).integers(5, 50, (300, 4))
    wanted = session.run({"input_ids": ids})["text_embeds"]
    session._policy = BatchPolicy.choose("tensorrt", encoder.manifest, "throughput")
    seen: list[Shape] = []
    run = session._run
    session._run = lambda feed, *rest: (seen.append(feed["input_ids"].shape), run(feed, *rest))[1]  # type: ignore[method-assign]
    np.testing.assert_allclose(session.run({"input_ids": ids})["text_embeds"], wanted, atol=1e-6)
    assert seen == [(256, 4), (44, 4)]
    with pytest.raises(InputError, match="found a text of 9000 tokens"):
        session.run({"input_ids": np.full((1, 9000), 5)})


def test_single_texts_and_a_few_image_batches_are_captured() -> None:
    assert is_captured("text", (1, 2)) and is_captured("text", (1, CAPTURED_TOKENS))
    assert not is_captured("text", (1, CAPTURED_TOKENS + 1)) and not is_captured("text", (2, 16))
    assert all(is_captured("vision", (count, 56, 56, 3)) for count in CAPTURED_IMAGES)
    assert not is_captured("vision", (9, 56, 56, 3))


@pytest.mark.parametrize("changed", [{"tokens": 0}, {"images": 0}, {"max_batch": 0}, {"texts": -1}])
def test_a_size_below_one_is_refused(changed: dict[str, int]) -> None:
    with pytest.raises(InputError, match="wanted every size to be 1 or more"):
        BatchPolicy(**{"tokens": 1, "images": 1} | changed)


def test_a_kind_is_graph_adapter_likeness_and_cost() -> None:
    """Texts with a mask, with another adapter or of another length are of another kind."""
    assert kind_of(text(3)) == Kind(3, "text", None, (3, False))
    assert kind_of(text(3)) == kind_of(text(3))
    assert kind_of(image(8)) == Kind(1, "vision", None, (8, 8, 3))
    others = [text(3), text(4), text(3, needs_mask=True), text(3, adapter="a"), text(3, adapter="b"), image(8)]
    assert len({kind_of(item) for item in others}) == len(others)
    assert kind_of(dataclasses.replace(text(3), tokens=0)).cost == 1


def make_texts(count: int, longest: int, seed: int) -> list[Item]:
    """Texts of random lengths; about one of four needs a mask, and about one of four has an adapter."""
    random = np.random.default_rng(seed)
    return [
        text(
            int(random.integers(2, longest + 1)),
            needs_mask=bool(random.random() < 0.25),
            adapter="lora" if random.random() < 0.25 else None,
        )
        for _ in range(count)
    ]


def plan(items: list[Item], batch_size: int | None = None) -> list[tuple[int, ...]]:
    return list(PLAIN.plan(items, batch_size))


@pytest.mark.parametrize("batch_size", [None, 1, 3, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_every_text_goes_once_among_its_like(seed: int, batch_size: int | None) -> None:
    """No batch mixes lengths, masks or adapters, and the texts of a kind keep their order."""
    items = make_texts(200, 20, seed)
    batches = plan(items, batch_size)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    by_kind: dict[Kind, list[int]] = {}
    for batch in batches:
        (kind,) = {kind_of(items[index]) for index in batch}
        by_kind.setdefault(kind, []).extend(batch)
    assert all(indices == sorted(indices) for indices in by_kind.values())
    assert {kind.adapter for kind in by_kind} == {None, "lora"}


def test_texts_and_images_share_no_batch() -> None:
    items = [text(2), image(8), text(2), image(8), image(9)]
    batches = list(BatchPolicy(tokens=100, images=4).plan(items))
    assert sorted(batches) == [(0, 2), (1, 3), (4,)]


def test_the_costliest_go_first() -> None:
    items = make_texts(200, 20, seed=1)
    lengths = [items[batch[0]].tokens for batch in plan(items)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_as_few_batches_as_the_rules_allow() -> None:
    """All items of one kind are one batch while the budget lasts."""
    items = make_texts(200, 4, seed=2)
    assert len(plan(items)) == len({kind_of(item) for item in items})


@pytest.mark.parametrize(
    ("length", "size"),
    [(2, CPU_TOKENS // 2), (16, CPU_TOKENS // 16), (300, CPU_TOKENS // 300), (CPU_TOKENS, 1), (8192, 1)],
)
def test_a_batch_keeps_to_the_budget_of_tokens(length: int, size: int) -> None:
    """A text above the budget still goes, alone."""
    batches = plan([text(length)] * (size + 1))
    assert [len(batch) for batch in batches] == ([size, 1] if size > 1 else [1, 1])
    assert all(len(batch) * length <= CPU_TOKENS or len(batch) == 1 for batch in batches)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (9, [4, 1])])
def test_a_batch_size_lowers_and_the_budget_does_too(batch_size: int, sizes: list[int]) -> None:
    batches = plan([text(CPU_TOKENS // 4)] * 5, batch_size)
    assert [len(batch) for batch in batches] == sizes
    assert [index for batch in batches for index in batch] == list(range(5))


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(None, [1] * 70), (2, [2] * 35), (64, [32, 32, 6]), (10**9, [32, 32, 6])]
)
def test_a_batch_size_replaces_that_of_images_up_to_a_limit(batch_size: int | None, sizes: list[int]) -> None:
    assert [len(batch) for batch in plan([image(8)] * 70, batch_size)] == sizes


def test_no_items_are_no_batches() -> None:
    assert plan([]) == []


@pytest.mark.parametrize(
    ("count", "batch_size", "wanted"),
    [
        (0, None, []),
        (3, None, [range(0, 1), range(1, 2), range(2, 3)]),
        (0, 4, []),
        (5, 2, [range(0, 2), range(2, 4), range(4, 5)]),
        (4, 2, [range(0, 2), range(2, 4)]),
        (2, 9, [range(0, 2)]),
        (70, 10**9, [range(0, MOST_IMAGES), range(MOST_IMAGES, 64), range(64, 70)]),
    ],
)
def test_images_go_in_their_order(count: int, batch_size: int | None, wanted: list[range]) -> None:
    """No batch size asks for any amount of memory."""
    assert list(PLAIN.plan_images(count, batch_size)) == wanted


def test_what_is_planned_is_never_oversized() -> None:
    """So the memory that it takes may be kept."""
    items = make_texts(500, 60, seed=3)
    for batch in plan(items):
        assert not is_oversized("text", (len(batch), items[batch[0]].tokens))
    assert not is_oversized("vision", (CPU_IMAGES, 512, 512, 3))
    assert is_oversized("text", (1, CPU_TOKENS + 1))
    assert is_oversized("text", (2, CPU_TOKENS // 2 + 1))
    assert is_oversized("vision", (CPU_IMAGES + 1, 512, 512, 3))
