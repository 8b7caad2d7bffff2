"""The golden checkpoint of nllb-clip-siglip, and what transformers' encoder and timm's vision tower gave for it."""

import json

import numpy as np

from tests.conftest import DATA

GOLDEN = DATA / "nllb_clip"
CHECKPOINT = GOLDEN / "checkpoint"
TEXT, VISION, CONTROLS = (np.load(GOLDEN / f"{name}.npz") for name in ("text", "vision", "controls"))
TEXTS: dict[str, list[str]] = json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))
FILES = tuple(name.removesuffix("/pixels") for name in VISION.files if name.endswith("/pixels"))

# Bound on unit vectors. Measured on the CPU: 3e-7.
SAME = 3e-6


def unit(features: np.ndarray) -> np.ndarray:
    """Each row over its length."""
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
