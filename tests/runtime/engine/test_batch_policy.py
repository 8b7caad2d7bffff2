"""No batch that encoder, service or Triton may form lies outside a TensorRT profile; every input goes once."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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
    TextBatch,
    is_captured,
    is_oversized,
    slot_rows,
)
from edgeclip.engine.devices import PROVIDERS, Device
from edgeclip.engine.opening import GraphToOpen, open_graph
from edgeclip.errors import InputError
from edgeclip.manifest import Manifest, TowerName
from edgeclip.serve.app import lane_policy
from edgeclip.serve.queue.fair_queue import FairQueue
from edgeclip.serve.settings import Settings
from edgeclip.triton import model_config
from tests.scenes.triton_config import pairs, parse

PAD = 1
PURPOSES: tuple[Purpose, ...] = ("throughput", "latency", "uniform")
PLAIN = BatchPolicy(tokens=CPU_TOKENS, images=CPU_IMAGES, pad_id=PAD)
Ends = list[tuple[Shape, Shape]]


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
    return ends(BatchPolicy.choose("tensorrt", manifest, "throughput").profiles(tower))


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100, 10**9])
def test_no_batch_of_the_encoder_lies_outside_a_profile(manifest: Manifest, batch_size: int | None) -> None:
    """Texts of every length, as many as make a full batch and one more; images up to several batches."""
    policy, texts = BatchPolicy.choose("tensorrt", manifest, "throughput"), engine_profiles(manifest, "text")
    for length in range(2, 8193):
        row = np.zeros(length, np.int64)
        for batch in policy.plan_texts([row] * (policy.rows((length,)) + 1), batch_size):
            assert_fits(batch.input_ids.shape, texts)
    images, pixels = (
        engine_profiles(manifest, "vision"),
        (manifest.need_image().size_px, manifest.need_image().size_px, 3),
    )
    for count in range(1, 100):
        for group in policy.plan_images(count, batch_size):
            assert_fits((len(group), *pixels), images)


def batches(policy: BatchPolicy, item: NDArray[Any], waiting: int) -> set[int]:
    """The sizes of the batches that a lane makes of so many waiting items."""
    queue, kind = FairQueue(policy.rows), policy.kind_of(item)
    queue.add(0, [kind] * waiting)
    sizes = set()
    while batch := queue.take():
        sizes.add(len(batch))
    return sizes


@pytest.mark.parametrize("max_batch", [None, 1, 7, 100_000])
def test_no_batch_of_the_service_lies_outside_a_profile(manifest: Manifest, max_batch: int | None) -> None:
    """Texts of every length, more of them than make a batch, and at each profile's ends every number of them."""
    settings = Settings(bundle=Path(), max_batch=max_batch)
    policy = lane_policy("tensorrt:0", manifest, settings)
    profiles = engine_profiles(manifest, "text")
    for length in range(2, 8193):
        for size in batches(policy, np.zeros(length, np.int64), policy.rows((length,)) + 1):
            assert_fits((size, length), profiles)
    for length in (2, 64, 65, 512, 513, 8192):
        for waiting in range(1, 2 * policy.rows((length,)) + 2):
            for size in batches(policy, np.zeros(length, np.int64), waiting):
                assert_fits((size, length), profiles)
    burst = batches(policy, np.zeros(2, np.int64), settings.max_queued_texts)
    assert max(burst) <= min(256, max_batch or 256)
    profiles, side = engine_profiles(manifest, "vision"), manifest.need_image().size_px
    for waiting in range(1, settings.max_queued_images + 1):
        for size in batches(policy, np.zeros((side, side, 3), np.uint8), waiting):
            assert_fits((size, side, side, 3), profiles)


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
    for shape in (*((length,) for length in range(2, 8193)), (512, 512, 3)):
        most = policy.rows(shape)
        assert most >= 1 and lowered.rows(shape) == min(most, 3) and raised.rows(shape) == most
        if len(shape) == 1 and purpose != "uniform":
            assert most == 1 or most * shape[0] <= GPU_TOKENS
    assert (policy.profiles("text") is not None) == (policy.profiles("vision") is not None) == (kind == "tensorrt")


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_batch_on_cuda_fits_a_slot(purpose: Purpose, manifest: Manifest) -> None:
    """So `edgeclip.engine.cuda.bound_runs` need not cut it. Triton has no slots."""
    policy = BatchPolicy.choose("cuda", manifest, purpose)
    if purpose != "uniform":
        for length in range(2, 8193):
            assert policy.rows((length,)) <= slot_rows("text")
            assert policy.rows((length,)) * length <= GPU_TOKENS
    assert policy.rows((512, 512, 3)) <= slot_rows("vision")


@pytest.mark.parametrize("purpose", ["throughput", "uniform"])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_profile_is_best_somewhere_inside_it(graph: str, purpose: Purpose, manifest: Manifest) -> None:
    profiles = BatchPolicy.choose("tensorrt", manifest, purpose).profiles(tower)
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
    parts = BatchPolicy.choose("tensorrt", manifest, "throughput").parts(shape)
    assert [row for part in parts for row in range(*part.indices(shape[0]))] == list(range(shape[0]))
    for part in parts:
        assert_fits((part.stop - part.start, *shape[1:]), engine_profiles(manifest, "text"))


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((1, 1), "found a text of 1 tokens, wanted 2 to 8192"),
        ((2, 8193), "found a text of 8193 tokens, wanted 2 to 8192"),
        ((1, 40, 40, 3), "found a batch of shape (1, 40, 40, 3), wanted ids (B, T) or pixels"),
        ((5,), "found a batch of shape (5,), wanted ids (B, T) or pixels"),
    ],
)
def test_a_batch_that_fits_no_profile_is_refused(shape: Shape, found: str, manifest: Manifest) -> None:
    with pytest.raises(InputError) as caught:
        BatchPolicy.choose("tensorrt", manifest, "throughput").parts(shape)
    assert found in str(caught.value) and "\n" not in str(caught.value)
    assert len(BatchPolicy.choose("cpu", manifest, "throughput").parts(shape)) == 1  # the graph decides there


def test_a_session_runs_a_large_batch_in_parts_and_joins_them(encoder: Encoder, bundle: Path) -> None:
    """As it would with TensorRT; here on the CPU, with TensorRT's policy."""
    session = TowerSession(bundle / "text.onnx", "text", Device(kind="cpu"), 1, encoder.manifest)
    ids = np.random.default_rng(0).integers(5, 50, (300, 4))
    wanted = session.run(ids)
    session._policy = BatchPolicy.choose("tensorrt", encoder.manifest, "throughput")
    seen: list[Shape] = []
    run = session._run
    session._run = lambda batch: (seen.append(batch.shape), run(batch))[1]  # type: ignore[method-assign]
    np.testing.assert_allclose(session.run(ids), wanted, atol=1e-6)
    assert seen == [(256, 4), (44, 4)]
    with pytest.raises(InputError, match="found a text of 9000 tokens"):
        session.run(np.full((1, 9000), 5))


def test_single_texts_and_a_few_image_batches_are_captured() -> None:
    assert is_captured("text", (1, 2)) and is_captured("text", (1, CAPTURED_TOKENS))
    assert not is_captured("text", (1, CAPTURED_TOKENS + 1)) and not is_captured("text", (2, 16))
    assert all(is_captured("vision", (count, 56, 56, 3)) for count in CAPTURED_IMAGES)
    assert not is_captured("vision", (9, 56, 56, 3))


@pytest.mark.parametrize("changed", [{"tokens": 0}, {"images": 0}, {"max_batch": 0}, {"texts": -1}])
def test_a_size_below_one_is_refused(changed: dict[str, int]) -> None:
    with pytest.raises(InputError, match="wanted every size to be 1 or more"):
        BatchPolicy(**{"tokens": 1, "images": 1} | changed)


def test_a_kind_is_length_and_mask_of_a_text_and_the_shape_of_an_image() -> None:
    assert PLAIN.kind_of(np.array([0, 5, 2])) == Kind(cost=3, shape=(3,))
    assert PLAIN.kind_of(np.array([0, PAD, 2])) == Kind(cost=3, shape=(3,), needs_mask=True)
    assert BatchPolicy(tokens=1, images=1).kind_of(np.array([0, PAD, 2])) == Kind(cost=3, shape=(3,))
    assert PLAIN.kind_of(np.zeros((8, 8, 3), np.uint8)) == Kind(cost=1, shape=(8, 8, 3))


def make_rows(count: int, longest: int, seed: int) -> list[NDArray[np.int64]]:
    """Random ids, a padding token among them in about one text of four."""
    random = np.random.default_rng(seed)
    rows = [random.integers(2, 100, random.integers(2, longest + 1)) for _ in range(count)]
    for row in rows:
        if random.random() < 0.25:
            row[random.integers(len(row))] = PAD
    return rows


def plan(rows: list[NDArray[np.int64]], batch_size: int | None = None) -> list[TextBatch]:
    return list(PLAIN.plan_texts(rows, batch_size))


@pytest.mark.parametrize("batch_size", [None, 1, 3, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_every_text_goes_once_with_its_own_ids(seed: int, batch_size: int | None) -> None:
    rows = make_rows(200, 20, seed)
    batches = plan(rows, batch_size)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(200))
    for batch in batches:
        assert batch.input_ids.dtype == np.int64
        assert batch.input_ids.shape[0] == len(batch.indices)
        for index, ids in zip(batch.indices, batch.input_ids, strict=True):
            np.testing.assert_array_equal(ids, rows[index])


def test_texts_with_a_literal_padding_token_go_with_their_like() -> None:
    """They need a mask, and no other text pays for it."""
    padded = [(batch.input_ids == PAD).any(axis=1) for batch in plan(make_rows(200, 6, seed=0))]
    assert all(rows.all() or not rows.any() for rows in padded)
    assert {bool(rows.all()) for rows in padded} == {True, False}


def test_the_longest_go_first() -> None:
    lengths = [batch.input_ids.shape[1] for batch in plan(make_rows(200, 20, seed=1))]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_as_few_batches_as_the_rules_allow() -> None:
    """Everything of one length, and with or without padding, is one batch while the budget lasts."""
    rows = make_rows(200, 4, seed=2)
    kinds = {(len(row), bool((row == PAD).any())) for row in rows}
    assert len(plan(rows)) == len(kinds)


@pytest.mark.parametrize(
    ("length", "size"),
    [(2, CPU_TOKENS // 2), (16, CPU_TOKENS // 16), (300, CPU_TOKENS // 300), (CPU_TOKENS, 1), (8192, 1)],
)
def test_a_batch_keeps_to_the_budget_of_tokens(length: int, size: int) -> None:
    """A text above the budget still goes, alone."""
    batches = plan([np.full(length, 5)] * (size + 1))
    assert [len(batch.indices) for batch in batches] == ([size, 1] if size > 1 else [1, 1])
    assert all(batch.input_ids.size <= CPU_TOKENS or len(batch.indices) == 1 for batch in batches)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (9, [4, 1])])
def test_a_batch_size_lowers_and_the_budget_does_too(batch_size: int, sizes: list[int]) -> None:
    batches = plan([np.full(CPU_TOKENS // 4, 5)] * 5, batch_size)
    assert [len(batch.indices) for batch in batches] == sizes
    assert [index for batch in batches for index in batch.indices] == list(range(5))


def test_no_texts_are_no_batches() -> None:
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
    for batch in plan(make_rows(500, 60, seed=3)):
        assert not is_oversized("text", batch.input_ids.shape)
    assert not is_oversized("vision", (CPU_IMAGES, 512, 512, 3))
    assert is_oversized("text", (1, CPU_TOKENS + 1))
    assert is_oversized("text", (2, CPU_TOKENS // 2 + 1))
    assert is_oversized("vision", (CPU_IMAGES + 1, 512, 512, 3))
