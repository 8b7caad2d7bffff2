"""What writing a bundle asks of a model family: load a tower, let it answer the self-test, trace it.

`edgeclip_export.bundle` writes bundles of any family; this is jina-clip's side of it.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgeclip.errors import BuildError
from edgeclip.manifest import ImageFacts
from edgeclip_export.checkpoint import Checkpoint
from edgeclip_export.families.jina_clip.config import JinaClipConfig
from edgeclip_export.families.jina_clip.fold import fold_text, fold_vision
from edgeclip_export.families.jina_clip.selftest import SelfTest, answer_images, answer_texts
from edgeclip_export.families.jina_clip.tensors import TEXT, VISION, tensor_shapes
from edgeclip_export.families.jina_clip.text_tower import TextTower
from edgeclip_export.families.jina_clip.vision_tower import VisionTower
from edgeclip_export.families.jina_clip.weights import open_weights
from edgeclip_export.tracing import trace

# What is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]
Tower = TextTower | VisionTower

PREFIXES: dict[str, str] = {"text": TEXT, "vision": VISION}


def load_tower(
    name: str, config: JinaClipConfig, image: ImageFacts, checkpoint: Checkpoint, progress: Progress
) -> Tower:
    """One tower, its weights folded; the other tower's tensors are checked but not read."""
    done = 0
    with open_weights(checkpoint, config) as weights:
        config = weights.config
        total = sum(tensor.startswith(PREFIXES[name]) for tensor in tensor_shapes(config))

        def read(tensor: str) -> torch.Tensor:
            nonlocal done
            done += 1
            progress(f"reading the {name} tower", done, total)
            return weights.read(tensor)

        tower: Tower
        with torch.device("meta"):
            tower = TextTower(config.text) if name == "text" else VisionTower(config.vision)
        folded = (
            fold_text(config.text, read)
            if name == "text"
            else fold_vision(config.vision, image.mean, image.std, read)
        )
        tower.load_state_dict(folded, assign=True)
    return tower.eval().requires_grad_(False)


def answer(tower: Tower, selftest: SelfTest) -> NDArray[np.float32]:
    """The tower's vectors for its half of the self-test (N, D)."""
    answers = answer_texts(tower, selftest) if isinstance(tower, TextTower) else answer_images(tower, selftest)
    if not np.isfinite(answers).all():
        raise BuildError("the torch tower answers the self-test with NaN or infinity; the weights are not usable")
    return answers


def trace_tower(tower: Tower) -> ir.Model:
    """The tower's trace, under the names the Hub's conventions give inputs and outputs."""
    if isinstance(tower, TextTower):
        example = torch.full((2, 3), tower.config.eos_id)
        axes = {0: "batch", 1: "sequence"}
        return trace(tower, example, input_name="input_ids", output_name="text_embeds", dynamic=axes)
    size = tower.config.image_size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    return trace(tower, example, input_name="pixel_values", output_name="image_embeds", dynamic={0: "batch"})
