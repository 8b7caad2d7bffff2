"""The golden checkpoint of jina-embeddings-v3 in both layouts, and what the reference gave for it.

Its dimensions, epsilons, rotary base, rank, alpha and the order of its adapters are not the real model's.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import DATA

GOLDEN = DATA / "jina_embeddings_v3"
OFFICIAL, CONVERTED = GOLDEN / "model", GOLDEN / "model_hf"
TEXT = np.load(GOLDEN / "text.npz")
E2E = np.load(GOLDEN / "e2e.npz")
CONTROLS = np.load(GOLDEN / "controls.npz")
INDEX: dict[str, Any] = json.loads((GOLDEN / "e2e.json").read_text(encoding="utf-8"))
SENTENCES: list[str] = INDEX["sentences"]
TASKS = ("text-matching", "retrieval.passage", "classification", "retrieval.query", "separation")

# The golden README's bound on unit vectors. Measured on the CPU: 6e-7.
NORMALISED = 3e-6


def copy_converted(folder: Path) -> Path:
    """The converted layout with the tokenizer, which the goldens keep once."""
    shutil.copytree(CONVERTED, folder)
    shutil.copy(OFFICIAL / "tokenizer.json", folder)
    return folder


def unit(features: np.ndarray) -> np.ndarray:
    """Each row over its length, which counts as at least 1e-12."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def largest_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest absolute difference of two arrays of one shape."""
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())
