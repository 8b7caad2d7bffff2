"""The bundle of a jina-embeddings-v4 checkpoint as plans: two graphs, the adapters, the facts and the self-test."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from edgeclip.errors import BuildError
from edgeclip.manifest import MultiSpace, PatchFacts, SingleSpace, Spaces, TaskFacts
from edgeclip_export.checkpoint import PREPROCESSOR, Checkpoint, read_json
from edgeclip_export.families.family import AdapterPlan, Answers, Arrays, Case, GraphPlan, ModelPlan
from edgeclip_export.families.jina_embeddings_v4.adapters import SETTINGS, parse_settings
from edgeclip_export.families.jina_embeddings_v4.config import PROMPTS, TASKS, JinaEmbeddingsV4Config, parse_config
from edgeclip_export.families.jina_embeddings_v4.preprocessor import patch_facts
from edgeclip_export.families.jina_embeddings_v4.selftest import (
    Picture,
    image_feed,
    picture_sizes,
    prepare_picture,
    text_feed,
)
from edgeclip_export.families.jina_embeddings_v4.tokenizer import check_tokenizer, read_tokenizer, text_facts
from edgeclip_export.families.jina_embeddings_v4.weights import Weights, open_weights
from edgeclip_export.texts import TEXTS
from edgeclip_export.towers.decoder import DecoderTower
from edgeclip_export.towers.decoder_fold import fold_decoder, pack_adapter
from edgeclip_export.towers.decoder_layout import DecoderConfig, adapter_shapes
from edgeclip_export.towers.lora import Adapter
from edgeclip_export.towers.weights import Read
from edgeclip_export.towers.window_vision import WindowVisionTower
from edgeclip_export.towers.window_vision_fold import fold_window_vision
from edgeclip_graph.traits import Traits

# The last text of others is long for a choice that this graph does not have: it would take half of an export's time.
_TEXTS = (*TEXTS[:-1], " ".join(f"{number} sheep" for number in range(1, 25)))
# While onnxruntime reused buffers by plan, a text of 8,192 tokens took 0.9 GB above the loaded int8 graph in four
# equal parts and 1.4 in two; it takes 0.7 without the plan. A text of 16 tokens takes 1 % longer in four parts.
_MLP_PARTS = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _SelfTest:
    """Inputs of the self-test with the task of each, texts as ids with the task's prompt."""

    rows: Sequence[list[int]]
    tasks: Sequence[str]
    pictures: Sequence[Picture]
    picture_tasks: Sequence[str]


@contextmanager
def open_model(checkpoint: Checkpoint, task: str | None) -> Iterator[ModelPlan]:
    """Plan the bundle of a checkpoint, whose weights are read while this is open.

    `task` names a task, or the adapter of several: it is merged, and the others are left out. Raises BuildError for a
    checkpoint that is not as its config.json says, and for a task that the model does not have.
    """
    folder = checkpoint.folder
    config = parse_config(checkpoint.config)
    settings = parse_settings(read_json(folder / SETTINGS))
    merged, tasks = _choose(config, task)
    tokenizer = read_tokenizer(folder)
    parsed = Tokenizer.from_str(tokenizer)
    prompt_ids = check_tokenizer(parsed, config.tokens, config.decoder.vocab_size)
    document = read_json(folder / PREPROCESSOR)
    image = patch_facts(document, config.vision, prompt_ids=prompt_ids, image_id=config.tokens.image)
    pictures = [draw_image(width, height) for width, height in picture_sizes(image.token_px)]
    text_tasks = [list(tasks)[index % len(tasks)] for index in range(len(_TEXTS))]
    texts = [tasks[name].prompt + text for name, text in zip(text_tasks, _TEXTS, strict=True)]
    selftest = _SelfTest(
        rows=[parsed.encode(text).ids[: config.max_tokens] for text in texts],
        tasks=text_tasks,
        pictures=[prepare_picture(picture, image) for picture in pictures],
        picture_tasks=[list(tasks)[-1 - index % len(tasks)] for index in range(len(pictures))],
    )
    facts = text_facts(folder, parsed, config.tokens, config.max_tokens)
    del parsed  # 100 MB, and an export goes on for minutes
    with open_weights(checkpoint, config, settings) as weights:
        adapter = None if merged is None else weights.adapters[merged]
        rank = settings.rank if merged is None else 0
        yield ModelPlan(
            graphs=(
                _plan_vision(config, image, weights.read, selftest),
                _plan_text(config, image, weights, adapter, rank, tasks, selftest),
            ),
            spaces=Spaces(
                single=SingleSpace(dim=config.decoder.width, matryoshka_dims=config.matryoshka_dims, is_strict=True),
                multi=MultiSpace(dim=config.decoder.multi_dim),
            ),
            text=facts,
            image=image,
            tokenizer=tokenizer,
            tasks=tasks,
            task_required=True,
            adapters={}
            if merged
            else {name: _plan_adapter(config.decoder, found, rank) for name, found in weights.adapters.items()},
            selftest={
                "texts": np.array(_TEXTS),
                "tasks": np.array(text_tasks),
                "image_tasks": np.array(selftest.picture_tasks),
                **{f"image_{index}": picture for index, picture in enumerate(pictures)},
            },
            layout="the official layout",
            notes=weights.notes,
        )


def _choose(config: JinaEmbeddingsV4Config, task: str | None) -> tuple[str | None, Mapping[str, TaskFacts]]:
    """The adapter that is merged, None for none, and the tasks of the bundle."""
    known = {name: pair for name, pair in TASKS.items() if pair[1] in config.adapters}
    adapters = [name for name in config.adapters if task in (None, name)]
    named = [adapter for name, (_, adapter) in known.items() if name == task]
    if not adapters and not named:
        wanted = ", ".join(dict.fromkeys((*config.adapters, *known)))
        raise BuildError(f"the task is {task!r}, this model has {wanted}")
    chosen = {name: pair for name, pair in known.items() if name == task or pair[1] in adapters}
    merged = None if task is None else (named or adapters)[0]
    facts = {
        name: TaskFacts(prompt=PROMPTS[prompt], adapter=None if merged else adapter, modalities=("text", "image"))
        for name, (prompt, adapter) in chosen.items()
    }
    return merged, facts


def _plan_vision(config: JinaEmbeddingsV4Config, image: PatchFacts, read: Read, selftest: _SelfTest) -> GraphPlan:
    patches, windows = 2 * config.vision.merge**2, config.vision.window_patches
    return GraphPlan(
        name="vision",
        build=lambda: WindowVisionTower(config.vision),
        examples={
            "pixel_values": torch.zeros(2, patches, config.vision.patch_values, dtype=torch.uint8),
            "patch_positions": torch.zeros(patches, 2, dtype=torch.int64),
            "windows": torch.zeros(3, windows, dtype=torch.int64),
            "window_places": torch.zeros(patches, dtype=torch.int64),
        },
        dynamic={
            "pixel_values": {0: "batch", 1: "patches"},
            "patch_positions": {0: "patches"},
            "windows": {0: "windows", 1: "window_patches"},
            "window_places": {0: "patches"},
            "image_features": {1: "image_tokens"},
        },
        outputs={"image_features": None},
        weights=fold_window_vision(config.vision, image.mean, image.std, read),
        traits=Traits(has_silu=True, splits_many_rows=True, always_masks=True, reads_in_place=True),
        cases=lambda answers: [Case(modality="image", feed=picture.feed) for picture in selftest.pictures],
    )


def _plan_text(
    config: JinaEmbeddingsV4Config,
    image: PatchFacts,
    weights: Weights,
    merged: Adapter | None,
    rank: int,
    tasks: Mapping[str, TaskFacts],
    selftest: _SelfTest,
) -> GraphPlan:
    """The decoder's graph; with a `rank` of 0 it takes no adapter."""
    decoder = config.decoder
    shapes = adapter_shapes(decoder, rank) if rank else {}
    examples: dict[str, Tensor] = {
        "input_ids": torch.zeros(2, 3, dtype=torch.int64),
        "position_ids": torch.zeros(2, 3, 3, dtype=torch.int64),
        "image_features": torch.zeros(2, 4, decoder.width),
        "image_places": torch.zeros(2, 3, dtype=torch.int64),
        "pool_mask": torch.zeros(2, 3),
        **{name: torch.zeros(()).expand(shape) for name, shape in shapes.items()},  # 145 MB if they were stored
    }

    def cases(answers: Answers) -> list[Case]:
        features = [outputs["image_features"] for outputs in answers["vision"]]
        feeds: list[Arrays] = [
            image_feed(picture, found, image) for picture, found in zip(selftest.pictures, features, strict=True)
        ]
        images = [
            Case(modality="image", feed=feed, adapter=tasks[name].adapter)
            for feed, name in zip(feeds, selftest.picture_tasks, strict=True)
        ]
        texts = [
            Case(modality="text", feed=text_feed(row, decoder.width), adapter=tasks[name].adapter)
            for row, name in zip(selftest.rows, selftest.tasks, strict=True)
        ]
        return [*texts, *images]

    return GraphPlan(
        name="text",
        build=lambda: DecoderTower(decoder),
        examples=examples,
        dynamic={
            "input_ids": {0: "batch", 1: "tokens"},
            "position_ids": {0: "batch", 2: "tokens"},
            "image_features": {0: "batch", 1: "image_tokens"},
            "image_places": {0: "batch", 1: "tokens"},
            "pool_mask": {0: "batch", 1: "tokens"},
        },
        outputs={"single": "single", "multi": "multi"},
        weights=fold_decoder(decoder, weights.read, merged, weights.table),
        traits=Traits(has_silu=True, reads_in_place=True, mlp_parts=_MLP_PARTS),
        cases=cases,
        adapter_inputs=tuple(shapes),
    )


def _plan_adapter(config: DecoderConfig, adapter: Adapter, rank: int) -> AdapterPlan:
    numbers = sum(int(np.prod(shape)) for shape in adapter_shapes(config, rank).values())
    return AdapterPlan(graph="text", rank=rank, size_bytes=4 * numbers, arrays=pack_adapter(config, adapter))


def draw_image(width: int, height: int) -> NDArray[np.uint8]:
    """A smooth picture with an edge and some grain, (height, width, 3), the same on every machine."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x // max(width - 1, 1)
    green = 255 * y // max(height - 1, 1)
    blue = np.where((x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 4) ** 2, 220, 40)
    grain = (x * 7 + y * 13) % 32
    return np.stack((red, green, blue - grain), axis=-1).clip(0, 255).astype(np.uint8)
