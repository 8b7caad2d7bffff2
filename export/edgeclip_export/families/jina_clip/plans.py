"""The bundle of a jina-clip checkpoint as plans: two graphs, their facts and their self-test."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeclip.errors import BuildError
from edgeclip.manifest import ImageFacts, SingleSpace, Spaces, TaskFacts, TextFacts
from edgeclip_export.checkpoint import TOKENIZER, Checkpoint
from edgeclip_export.families.family import Case, GraphPlan, ModelPlan
from edgeclip_export.families.jina_clip.bert_text import BertTextConfig, read_frame
from edgeclip_export.families.jina_clip.config import JinaClipConfig, TextConfig, parse_config
from edgeclip_export.families.jina_clip.fold import fold_text, fold_vision, text_tower
from edgeclip_export.families.jina_clip.preprocessor import read_image_facts
from edgeclip_export.families.jina_clip.selftest import IMAGE_SIZES_PX, draw_image, preprocess
from edgeclip_export.families.jina_clip.vision_tower import VisionTower
from edgeclip_export.families.jina_clip.weights import open_weights
from edgeclip_export.texts import TEXTS, reset_tokenizer, tokenize
from edgeclip_export.towers.weights import Read
from edgeclip_graph.traits import Traits

# The padding token as the texts of every self-test spell it.
_PADDING = "<pad>"


@contextmanager
def open_model(checkpoint: Checkpoint, task: str | None) -> Iterator[ModelPlan]:
    """Plan the bundle of a checkpoint, whose weights are read while this is open.

    Raises BuildError for a checkpoint that is not as its config.json says, and for any task.
    """
    if task is not None:
        raise BuildError("jina-clip has no adapter but one that is always merged; export it without a task")
    config = parse_config(checkpoint.config)
    image = read_image_facts(checkpoint.folder, config)
    content = (checkpoint.folder / TOKENIZER).read_bytes()
    text = _text_facts(config.text, content)
    tokenizer = reset_tokenizer(content, text, config.text.vocab_size)
    texts = _with_padding_token(tokenizer, text)
    rows = tokenize(tokenizer, text, texts)
    pictures = [draw_image(width, height) for width, height in IMAGE_SIZES_PX]
    pixels = np.stack([preprocess(picture, image) for picture in pictures])
    with open_weights(checkpoint, config) as weights:
        config = weights.config
        tasks = {} if isinstance(config.text, BertTextConfig) else config.text.instructions
        yield ModelPlan(
            graphs=(_plan_text(config.text, weights.read, rows), _plan_vision(config, image, weights.read, pixels)),
            spaces=Spaces(
                single=SingleSpace(dim=config.embedding_dim, matryoshka_dims=config.matryoshka_dims, is_strict=False),
                multi=None,
            ),
            text=text,
            image=image,
            tokenizer=tokenizer,
            tasks={
                name: TaskFacts(prompt=prompt, adapter=None, modalities=("text",)) for name, prompt in tasks.items()
            },
            selftest={
                "texts": np.array(texts),
                "tasks": np.array([""] * len(texts)),
                **{f"image_{index}": picture for index, picture in enumerate(pictures)},
                **{f"input_ids_{index}": row for index, row in enumerate(rows)},
                "pixel_values": pixels,
            },
            layout="the official layout",
            notes=weights.notes,
        )


def _text_facts(config: TextConfig | BertTextConfig, tokenizer: bytes) -> TextFacts:
    if isinstance(config, BertTextConfig):
        bos_id, eos_id = read_frame(tokenizer)
    else:
        bos_id, eos_id = config.bos_id, config.eos_id
    return TextFacts(file=TOKENIZER, max_length=config.max_tokens, bos_id=bos_id, eos_id=eos_id, pad_id=config.pad_id)


def _with_padding_token(tokenizer: str, facts: TextFacts) -> list[str]:
    """The texts of the self-test, in which the padding token is spelled as this tokenizer spells it."""
    token = Tokenizer.from_str(tokenizer).id_to_token(facts.pad_id)
    return [text.replace(_PADDING, token or _PADDING) for text in TEXTS]


def _plan_text(config: TextConfig | BertTextConfig, read: Read, rows: Sequence[NDArray[np.int64]]) -> GraphPlan:
    return GraphPlan(
        name="text",
        build=lambda: text_tower(config),
        examples={"input_ids": torch.full((2, 3), config.pad_id + 1)},
        dynamic={"input_ids": {0: "batch", 1: "sequence"}},
        outputs={"text_embeds": "single"},
        weights=fold_text(config, read),
        traits=Traits(chooses_by_rows=True),
        cases=lambda answers: [Case(modality="text", feed={"input_ids": row}) for row in rows],
    )


def _plan_vision(config: JinaClipConfig, image: ImageFacts, read: Read, pixels: NDArray[np.uint8]) -> GraphPlan:
    size = config.vision.image_size
    return GraphPlan(
        name="vision",
        build=lambda: VisionTower(config.vision),
        examples={"pixel_values": torch.zeros(2, size, size, 3, dtype=torch.uint8)},
        dynamic={"pixel_values": {0: "batch"}},
        outputs={"image_embeds": "single"},
        weights=fold_vision(config.vision, image.mean, image.std, read),
        traits=Traits(has_silu=True, splits_many_rows=True),
        cases=lambda answers: [Case(modality="image", feed={"pixel_values": one[None]}) for one in pixels],
    )
