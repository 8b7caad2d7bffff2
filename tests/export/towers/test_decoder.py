"""The decoder gives the official code's vectors of texts and of images, and every known mistake is seen."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from edgeclip_export.towers import decoder as decoder_module
from edgeclip_export.towers.decoder import DecoderTower
from edgeclip_export.towers.decoder_fold import pack_adapter
from edgeclip_export.towers.decoder_layout import adapter_shapes
from tests.scenes import v4_golden as golden
from tests.scenes.v4_golden import HIDDEN, IMAGE, IMAGES, MULTI, SINGLE, TASKS, TEXT, largest

# A mistake is seen when the single vector is this far off; the smallest in the list, other pooling, is 20 times it.
SEEN = 10 * SINGLE


@pytest.fixture(scope="module", autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def tower() -> DecoderTower:
    return golden.decoder()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch", ["query", "passage"])
def test_texts_in_a_padded_batch_equal_the_reference(tower: DecoderTower, batch: str, task: str) -> None:
    inputs = golden.text_inputs(batch)
    single, multi = tower(*inputs, *golden.arrays(task))
    hidden, mask = tower.hidden(*inputs, *golden.arrays(task)), inputs[4]
    assert largest(single, TEXT[f"{batch}/{task}/expected_single"]) <= SINGLE
    assert largest(multi, TEXT[f"{batch}/{task}/expected_multi"], mask) <= MULTI
    assert largest(hidden, TEXT[f"{batch}/{task}/expected_last_hidden"], mask) <= HIDDEN


@pytest.mark.parametrize("task", TASKS)
def test_a_merged_adapter_gives_the_same_as_one_that_is_fed(task: str) -> None:
    single, multi = golden.decoder(merged=task)(*golden.text_inputs("query"))
    assert largest(single, TEXT[f"query/{task}/expected_single"]) <= SINGLE
    assert largest(multi, TEXT[f"query/{task}/expected_multi"], golden.text_inputs("query")[4]) <= MULTI


def test_zeros_for_an_adapter_are_the_base_model(tower: DecoderTower) -> None:
    zeros = [torch.zeros_like(array) for array in golden.arrays("code")]
    for adapter in ([], zeros):
        single, _ = tower(*golden.text_inputs("query"), *adapter)
        assert largest(single, TEXT["query/no_adapter/expected_single"]) <= SINGLE


def test_cut_texts_of_several_tasks_equal_the_reference_one_by_one(tower: DecoderTower) -> None:
    for row, task in enumerate(golden.META["text"]["mixed_tasks"]):
        inputs = golden.text_inputs("mixed", slice(row, row + 1))
        single, multi = tower(*inputs, *golden.arrays(task))
        assert largest(single[0], TEXT["mixed/expected_single"][row]) <= SINGLE
        assert largest(multi, TEXT["mixed/expected_multi"][row][None], inputs[4]) <= MULTI


def test_a_text_alone_has_the_vectors_that_it_has_in_a_batch(tower: DecoderTower) -> None:
    adapter = golden.arrays("retrieval")
    single, multi = tower(*golden.text_inputs("query"), *adapter)
    for row, length in enumerate(golden.text_inputs("query")[4].sum(dim=1).int().tolist()):
        ids, positions, features, places, mask = golden.text_inputs("query", slice(row, row + 1))
        alone = ids[:, :length], positions[:, :, :length], features, places[:, :length], mask[:, :length]
        one, tokens = tower(*alone, *adapter)
        assert (one[0] - single[row]).abs().max() <= 5e-6
        assert (tokens[0] - multi[row, :length]).abs().max() <= 5e-6


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("image", IMAGES)
def test_images_equal_the_reference(tower: DecoderTower, image: int, task: str) -> None:
    single, multi = tower(*image_inputs(image), *golden.arrays(task))
    assert largest(single[0], IMAGE[f"{image}/{task}/expected_single"]) <= SINGLE
    assert largest(multi[0], IMAGE[f"{image}/{task}/expected_multi"]) <= MULTI


@pytest.mark.parametrize("image", IMAGES[:-1])
def test_hidden_states_of_images_equal_the_reference(tower: DecoderTower, image: int) -> None:
    hidden = tower.hidden(*image_inputs(image), *golden.arrays("retrieval"))
    assert largest(hidden[0], IMAGE[f"{image}/retrieval/expected_last_hidden"]) <= HIDDEN


def test_images_of_several_sizes_in_one_padded_batch_equal_the_reference(tower: DecoderTower) -> None:
    wanted = [torch.from_numpy(IMAGE[f"{image}/expected_image_features"]) for image in IMAGES]
    features = torch.nn.utils.rnn.pad_sequence(wanted, batch_first=True)  # (B, M, W)
    inputs = golden.image_inputs("batch", features)
    single, multi = tower(*inputs, *golden.arrays("code"))
    assert largest(single, IMAGE["batch/code/expected_single"]) <= SINGLE
    mask = torch.from_numpy(IMAGE["batch/attention_mask"])
    assert largest(multi, IMAGE["batch/code/expected_multi"], mask) <= MULTI


def test_texts_and_images_in_one_batch_do_not_disturb_each_other(tower: DecoderTower) -> None:
    image = image_inputs(5)
    tokens, features = image[0].shape[1], image[2].shape[1]
    text = [one[:, ..., :tokens] for one in golden.text_inputs("query", slice(1, 2))]
    text[2] = torch.zeros(1, features, golden.CONFIG.decoder.width)
    both = [torch.cat(pair) for pair in zip(text, image, strict=True)]
    adapter = golden.arrays("retrieval")
    single, _ = tower(*both, *adapter)
    assert (single[0] - tower(*text, *adapter)[0][0]).abs().max() <= 5e-6
    assert largest(single[1], IMAGE["5/retrieval/expected_single"]) <= SINGLE


def pool_everything(inputs: list[Tensor]) -> None:
    inputs[4] = torch.ones_like(inputs[4])


def pool_image_tokens_alone(inputs: list[Tensor]) -> None:
    inputs[4] = (inputs[3] >= 0).float()


def number_tokens_one_by_one(inputs: list[Tensor]) -> None:
    inputs[1] = torch.arange(inputs[0].shape[1]).expand_as(inputs[1])


def continue_text_at_the_token_index(inputs: list[Tensor]) -> None:
    last = int((inputs[3] >= 0).nonzero()[-1, 1]) + 1
    inputs[1] = inputs[1].clone()
    inputs[1][..., last:] = torch.arange(last, inputs[0].shape[1])


@pytest.mark.parametrize(
    "mistake",
    [pool_everything, pool_image_tokens_alone, number_tokens_one_by_one, continue_text_at_the_token_index],
)
def test_a_wrong_input_of_an_image_is_seen(tower: DecoderTower, mistake: Callable[[list[Tensor]], None]) -> None:
    inputs = image_inputs(2)
    mistake(inputs)
    single, _ = tower(*inputs, *golden.arrays("retrieval"))
    assert largest(single[0], IMAGE["2/retrieval/expected_single"]) > SEEN


def test_attention_in_both_directions_is_seen(tower: DecoderTower, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int) -> Tensor:
        split = [x.unflatten(-1, (n, -1)).transpose(1, 2) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads))]
        out = torch.nn.functional.scaled_dot_product_attention(*split, scale=1.0, enable_gqa=True)
        return out.transpose(1, 2).flatten(2)

    monkeypatch.setattr(decoder_module, "causal_attention", attend)
    assert text_difference(tower, golden.arrays("retrieval")) > SEEN


def test_a_forgotten_scale_of_the_adapter_is_seen(tower: DecoderTower) -> None:
    names = list(pack_adapter(golden.CONFIG.decoder, golden.adapter("retrieval")))
    halved = [
        array / 2 if name.endswith("_b") else array
        for name, array in zip(names, golden.arrays("retrieval"), strict=True)
    ]
    assert text_difference(tower, halved) > SEEN


def test_a_forgotten_adapter_of_the_projector_is_seen(tower: DecoderTower) -> None:
    *others, b = golden.arrays("retrieval")
    inputs = golden.text_inputs("query")
    single, multi = tower(*inputs, *others, torch.zeros_like(b))
    assert largest(single, TEXT["query/retrieval/expected_single"]) <= SINGLE
    assert largest(multi, TEXT["query/retrieval/expected_multi"], inputs[4]) > SEEN


@pytest.mark.parametrize("task", ["code", None])
def test_another_adapter_or_none_is_seen(tower: DecoderTower, task: str | None) -> None:
    assert text_difference(tower, [] if task is None else golden.arrays(task)) > SEEN


def test_another_prompt_is_seen(tower: DecoderTower) -> None:
    single, _ = tower(*golden.text_inputs("passage"), *golden.arrays("retrieval"))
    assert largest(single, TEXT["query/retrieval/expected_single"]) > SEEN


def test_an_adapter_is_packed_in_the_order_and_shapes_of_the_layout() -> None:
    packed = pack_adapter(golden.CONFIG.decoder, golden.adapter("code"))
    wanted = adapter_shapes(golden.CONFIG.decoder, rank=4)
    assert [(name, read().shape) for name, read in packed.items()] == list(wanted.items())


def image_inputs(image: int) -> list[Tensor]:
    features = torch.from_numpy(IMAGE[f"{image}/expected_image_features"])[None]
    return golden.image_inputs(str(image), features)


def text_difference(tower: DecoderTower, adapter: list[Tensor]) -> float:
    single, _ = tower(*golden.text_inputs("query"), *adapter)
    return largest(single, TEXT["query/retrieval/expected_single"])
