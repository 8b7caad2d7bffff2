"""The page model during training: raw tensors in the official layout, folded into the export's own towers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.func import functional_call

from edgeclip.inputs.patches import Grid, group_windows, patch_positions
from edgeclip_bench.demo.pages.batches import ALL_LABELS, PARTICULARS
from edgeclip_bench.demo.pages.contents import MAX_VALUE, TOPICS
from edgeclip_bench.demo.pages.layout import ALPHA, RANK, preprocessor_config
from edgeclip_bench.demo.raw_tensors import RawTensors, initial_scale, initial_weight
from edgeclip_export.families.jina_embeddings_v4.adapters import adapter_tensor, adapter_tensor_shapes
from edgeclip_export.families.jina_embeddings_v4.config import JinaEmbeddingsV4Config
from edgeclip_export.families.jina_embeddings_v4.preprocessor import patch_facts
from edgeclip_export.families.jina_embeddings_v4.selftest import Picture, image_feed
from edgeclip_export.families.jina_embeddings_v4.tensors import tensor_shapes
from edgeclip_export.families.jina_embeddings_v4.tokenizer import check_tokenizer
from edgeclip_export.towers.decoder import DecoderTower
from edgeclip_export.towers.decoder_fold import fold_decoder
from edgeclip_export.towers.decoder_layout import PROJECTOR, Shapes
from edgeclip_export.towers.lora import Adapter
from edgeclip_export.towers.weights import Weights
from edgeclip_export.towers.window_vision import WindowVisionTower
from edgeclip_export.towers.window_vision_fold import fold_window_vision

# What is trained beside the model and is not in the checkpoint: the losses' scales, what reads image features, and a
# prototype of each particular that pages and questions have in common.
SINGLE_SCALE, MULTI_SCALE, READING = "single_scale", "multi_scale", "reading"
SINGLE_PROTOTYPES, MULTI_PROTOTYPES = "single_prototypes", "multi_prototypes"
CLASSES = len(TOPICS) + len(ALL_LABELS) + max(MAX_VALUE.values())


# What can be computed wrong: of pages, and of pages and texts alike.
PageMistake = Literal["positions", "windows", "small windows", "pooling"]
AdapterMistake = Literal["scale", "projector"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Unit vectors of B inputs: single (B, W), multi (B, T, E) with zeros where there is no token."""

    single: Tensor
    multi: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PageVectors(Vectors):
    """Vectors of pages, with the vision tower's features (B, M, W) and the image tokens' multi vectors (B, M, E)."""

    features: Tensor
    image: Tensor


class RawPages(RawTensors):
    """The two towers on trainable tensors of the official layout, adapters included."""

    def __init__(self, config: JinaEmbeddingsV4Config, tokenizer: Tokenizer, seed: int) -> None:
        adapters = adapter_tensor_shapes(config.decoder, config.adapters, RANK)
        self.shapes = {**tensor_shapes(config), **adapters}
        training: Shapes = {
            SINGLE_SCALE: (),
            MULTI_SCALE: (),
            READING: (CLASSES, config.decoder.width),
            SINGLE_PROTOTYPES: (len(PARTICULARS), config.decoder.width),
            MULTI_PROTOTYPES: (len(PARTICULARS), config.decoder.multi_dim),
        }
        super().__init__({**self.shapes, **training}, _initial, seed)
        self._config = config
        prompt = check_tokenizer(tokenizer, config.tokens, config.decoder.vocab_size)
        self._facts = patch_facts(
            preprocessor_config(), config.vision, prompt_ids=prompt, image_id=config.tokens.image
        )
        with torch.device("meta"):
            self._decoder, self._vision = DecoderTower(config.decoder), WindowVisionTower(config.vision)

    def is_matrix(self, name: str, tensor: Tensor) -> bool:
        """The linear layers' weights, not the factors of adapters."""
        return tensor.ndim == 2 and name in self.shapes and "embed_tokens" not in name and "lora" not in name

    def features(self, pixels: Tensor, *, mistake: PageMistake | AdapterMistake | None = None) -> Tensor:
        """The vision tower's features (B, M, W) of pages (B, H, W, 3) uint8, whose sides are whole tokens."""
        side, merge = self._facts.patch_px, self._facts.merge
        grid = Grid(rows=pixels.shape[1] // side, columns=pixels.shape[2] // side)
        cut = pixels.unflatten(1, (-1, merge, side)).unflatten(4, (-1, merge, side))  # (B, r, 2, p, c, 2, p, 3)
        patches = cut.permute(0, 1, 4, 2, 5, 7, 3, 6).flatten(5).flatten(1, 4)  # (B, P, 3 * p * p)
        facts = self._facts
        if mistake == "small windows":
            facts = replace(facts, window_px=facts.window_px // 2)
        windows, places = (torch.from_numpy(array) for array in group_windows(grid, facts))
        if mistake == "windows":
            windows, places = torch.arange(len(places))[None], torch.arange(len(places))
        positions = torch.from_numpy(patch_positions(grid, self._facts))
        weights = fold_window_vision(self._config.vision, self._facts.mean, self._facts.std, self.read)
        return functional_call(self._vision, _read(weights), (patches, positions, windows, places))

    def pages(
        self, pixels: Tensor, adapter: str, *, mistake: PageMistake | AdapterMistake | None = None
    ) -> PageVectors:
        """The vectors of pages (B, H, W, 3) uint8, whose sides are whole tokens.

        With a `mistake` they are computed wrong: positions of image tokens count on as words' do, every block sees
        the whole image, windows are half as wide, the single vector is the mean over the whole prompt, or the adapter
        is used without its scale or is forgotten at the projector of multi vectors.
        """
        features = self.features(pixels, mistake=mistake)
        rows, columns = (side // self._facts.token_px for side in pixels.shape[1:3])
        picture = Picture(feed={}, rows=rows, columns=columns)
        feed = image_feed(picture, np.empty((1, 0, 0), np.float32), self._facts)
        ids, turned, places, pooled = (
            torch.from_numpy(feed[name]).expand(len(pixels), *feed[name].shape[1:]).contiguous()
            for name in ("input_ids", "position_ids", "image_places", "pool_mask")
        )
        if mistake == "positions":
            turned = torch.arange(ids.shape[1]).expand_as(turned)
        if mistake == "pooling":
            pooled = torch.ones_like(pooled)
        found = self._decode((ids, turned, features, places, pooled), torch.ones_like(pooled), adapter, mistake)
        first = self._facts.prompt_ids.index(self._facts.image_id)
        image = found.multi[:, first : first + rows * columns]
        return PageVectors(single=found.single, multi=found.multi, features=features, image=image)

    def texts(self, ids: Tensor, mask: Tensor, adapter: str, *, mistake: AdapterMistake | None = None) -> Vectors:
        """The vectors of texts (B, T), with a mask (B, T) of ones, then zeros at padding."""
        count, length = ids.shape
        positions = torch.arange(length).expand(count, 3, length)
        features = torch.zeros(count, 1, self._config.decoder.width)
        return self._decode((ids, positions, features, torch.full_like(ids, -1), mask), mask, adapter, mistake)

    def _decode(self, inputs: Sequence[Tensor], mask: Tensor, adapter: str, mistake: str | None) -> Vectors:
        def factors(layer: str) -> tuple[Tensor, Tensor]:
            a, b = (self.read(adapter_tensor(layer, part, adapter)) for part in "AB")
            return a, b * (mistake != "projector" or layer != PROJECTOR)

        merged = Adapter(scale=1.0 if mistake == "scale" else ALPHA / RANK, factors=factors)
        weights = _read(fold_decoder(self._config.decoder, self.read, merged))
        single, multi = functional_call(self._decoder, weights, tuple(inputs))
        return Vectors(single=single, multi=multi * mask[..., None])


def _read(weights: Weights) -> dict[str, Tensor]:
    return {name: weight.read() for name, weight in weights.items()}


def _initial(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Activations of about unit variance, residual branches that start small, adapters that are not zero.

    An adapter starts as long as the weights that it is added to, and stays so: leaving it out cannot go unseen.
    """
    noise = torch.randn(shape, generator=draw)
    if name in (SINGLE_SCALE, MULTI_SCALE):
        return initial_scale()
    if name in (READING, SINGLE_PROTOTYPES, MULTI_PROTOTYPES):
        return noise * 0.02
    if "lora_A" in name:
        return noise / math.sqrt(shape[-1])
    gain = 0.3 if name.split(".")[-2] in ("o_proj", "down_proj", "proj") and "patch_embed" not in name else 1.0
    if "lora_B" in name:
        gain = 0.3 if "o_proj" in name or "down_proj" in name else 1.0
        return noise * gain * RANK / ALPHA / math.sqrt(RANK)
    return initial_weight(name, noise, gain=gain, is_table="embed_tokens" in name)
