"""The bundle of an nllb-clip-siglip checkpoint as plans: two graphs, their facts and their self-test.

A text's task is the code of its language, and one is required: the model pools the code's token.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from edgeclip.errors import BuildError
from edgeclip.manifest import ImageFacts, SingleSpace, Spaces, TaskFacts, TextFacts
from edgeclip_export.checkpoint import TOKENIZER, Checkpoint
from edgeclip_export.families.family import Case, GraphPlan, ModelPlan
from edgeclip_export.families.jina_clip.preprocessor import image_facts
from edgeclip_export.families.jina_clip.selftest import IMAGE_SIZES_PX, draw_image, preprocess
from edgeclip_export.families.nllb_clip.config import NllbClipConfig, parse_config
from edgeclip_export.families.nllb_clip.fold import fold_text, fold_vision
from edgeclip_export.families.nllb_clip.tensors import BUFFERS, tensor_shapes
from edgeclip_export.families.nllb_clip.text_tower import M2mTower
from edgeclip_export.families.nllb_clip.tokenizer import order_tokens
from edgeclip_export.families.nllb_clip.vision_tower import SiglipTower
from edgeclip_export.saved_names import check_tensors, name_officially
from edgeclip_export.tensors import open_tensors
from edgeclip_export.texts import TEXTS, reset_tokenizer, tokenize
from edgeclip_export.towers.weights import Read
from edgeclip_graph.traits import Traits

# The languages of the self-test's texts. A tokenizer without one of them has another code in its place.
_LANGUAGES = ("eng_Latn", "deu_Latn", "jpn_Jpan", "arb_Arab", "eng_Latn", "eng_Latn")
# What open_clip has for these models, where the file does not say it.
_PREPROCESSING = {"resize_mode": "squash", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
_ANCHORS = ("visual.trunk.pos_embed", "text.proj.weight", "logit_scale")


@contextmanager
def open_model(checkpoint: Checkpoint, task: str | None) -> Iterator[ModelPlan]:
    """Plan the bundle of a checkpoint, whose weights are read while this is open.

    Raises BuildError for a checkpoint that is not as its configuration says, and for any task.
    """
    if task is not None:
        raise BuildError("nllb-clip-siglip has no adapters; export it without a task and give each text its language")
    config = parse_config(checkpoint.config)
    size = config.vision.image_size
    image = image_facts({"size": size, **_PREPROCESSING, **config.preprocessing}, config, "preprocess_cfg")
    ordered, codes = order_tokens((checkpoint.folder / TOKENIZER).read_bytes(), config.eos_id)
    text = _text_facts(config, codes)
    tokenizer = reset_tokenizer(ordered.encode(), text, config.text.vocab_size)
    languages = [code if code in codes else next(iter(codes)) for code in _LANGUAGES]
    rows = tokenize(tokenizer, text, TEXTS)
    for row, language in zip(rows, languages, strict=True):
        row[0, 0] = codes[language]
    pictures = [draw_image(width, height) for width, height in IMAGE_SIZES_PX]
    pixels = np.stack([preprocess(picture, image) for picture in pictures])
    with _open_weights(checkpoint, config) as (read, notes):
        yield ModelPlan(
            graphs=(_plan_text(config, read, rows), _plan_vision(config, image, read, pixels)),
            spaces=Spaces(
                single=SingleSpace(dim=config.text.dim, matryoshka_dims=(config.text.dim,), is_strict=False),
                multi=None,
            ),
            text=text,
            image=image,
            tokenizer=tokenizer,
            tasks={code: TaskFacts(prompt=code, adapter=None, modalities=("text",)) for code in codes},
            task_required=True,
            selftest={
                "texts": np.array(TEXTS),
                "tasks": np.array(languages),
                **{f"image_{index}": picture for index, picture in enumerate(pictures)},
                **{f"input_ids_{index}": row for index, row in enumerate(rows)},
                "pixel_values": pixels,
            },
            layout="open_clip's layout",
            notes=notes,
        )


@contextmanager
def _open_weights(checkpoint: Checkpoint, config: NllbClipConfig) -> Iterator[tuple[Read, tuple[str, ...]]]:
    """What reads a tensor by its official name, and what was left out of the names, in sentences."""
    with open_tensors(checkpoint) as tensors:
        where = str(checkpoint.where)
        names = name_officially(tensors.places.keys(), _ANCHORS, where)
        check_tensors(tensors, names.saved, tensor_shapes(config), where, ignored=BUFFERS)
        yield lambda name: tensors.read(names.saved[name]), names.notes(where)


def _text_facts(config: NllbClipConfig, codes: Mapping[str, int]) -> TextFacts:
    return TextFacts(
        file=TOKENIZER,
        max_length=config.text.max_tokens,
        bos_id=next(iter(codes.values())),
        eos_id=config.eos_id,
        pad_id=config.text.pad_id,
    )


def _plan_text(config: NllbClipConfig, read: Read, rows: Sequence[NDArray[np.int64]]) -> GraphPlan:
    return GraphPlan(
        name="text",
        build=lambda: M2mTower(config.text),
        examples={"input_ids": torch.full((2, 3), config.eos_id)},
        dynamic={"input_ids": {0: "batch", 1: "sequence"}},
        outputs={"text_embeds": "single"},
        weights=fold_text(config.text, read),
        traits=Traits(chooses_by_rows=True),
        cases=lambda answers: [Case(modality="text", feed={"input_ids": row}) for row in rows],
    )


def _plan_vision(config: NllbClipConfig, image: ImageFacts, read: Read, pixels: NDArray[np.uint8]) -> GraphPlan:
    size = config.vision.image_size
    return GraphPlan(
        name="vision",
        build=lambda: SiglipTower(config.vision),
        examples={"pixel_values": torch.zeros(2, size, size, 3, dtype=torch.uint8)},
        dynamic={"pixel_values": {0: "batch"}},
        outputs={"image_embeds": "single"},
        weights=fold_vision(config.vision, image.mean, image.std, read),
        traits=Traits(splits_many_rows=True),
        cases=lambda answers: [Case(modality="image", feed={"pixel_values": one[None]}) for one in pixels],
    )
