"""What transformers' own jina-embeddings-v3 gets wrong without a word, and the bundle does not.

Native code takes the rotary base from `rope_parameters` or its default of 20000, whatever config.json says in
`rotary_emb_base`, and its forward swallows `adapter_mask`, so a call for a task gives the vectors of no task.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.scenes.v3_goldens import NORMALISED, TEXT, copy_converted, unit

IDS = torch.from_numpy(TEXT["nopad.input_ids"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_converted(tmp_path_factory.mktemp("native") / "model")


def native(folder: Path, rotary_base: float | None) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder)
    if rotary_base is not None:
        config.rope_parameters = {"rope_type": "default", "rope_theta": rotary_base}
    return AutoModel.from_pretrained(folder, config=config, dtype=torch.float32).eval()


def vectors(model: torch.nn.Module, **options: object) -> np.ndarray:
    with torch.inference_mode():
        hidden = model(IDS, attention_mask=torch.ones_like(IDS), **options).last_hidden_state
    return unit(hidden.mean(dim=1).numpy())


@pytest.mark.filterwarnings("ignore")
def test_native_code_ignores_the_rotary_base_of_the_file(folder: Path) -> None:
    wanted = unit(TEXT["nopad.none.features"])
    assert np.abs(vectors(native(folder, None)) - wanted).max() > 1000 * NORMALISED
    assert np.abs(vectors(native(folder, 12000.0)) - wanted).max() <= NORMALISED


@pytest.mark.filterwarnings("ignore")
def test_native_code_swallows_the_adapter_mask(folder: Path) -> None:
    model = native(folder, 12000.0)
    asked = vectors(model, adapter_mask=torch.full((len(IDS),), 3, dtype=torch.int32))
    assert np.abs(asked - vectors(model)).max() <= NORMALISED
    assert np.abs(asked - unit(TEXT["nopad.retrieval.query.features"])).max() > 1000 * NORMALISED
