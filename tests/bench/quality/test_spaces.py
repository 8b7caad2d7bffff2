"""A vector is found again only where all that decides it is the same; what that is, test_vector_facts.py says."""

from importlib.resources import files
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from PIL import features

from edgeclip import Encoder
from edgeclip.engine import vector_facts
from edgeclip.manifest import MODALITIES
from edgeclip_bench.quality import spaces
from edgeclip_bench.quality.cache import EmbeddingCache, Space
from edgeclip_bench.quality.embeddings import Counts, Embedder
from edgeclip_bench.quality.spaces import space_of


def test_another_modality_device_or_code_is_another_space(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation's code counts besides the runtime's."""
    found = {space_of(encoder, modality).key for modality in MODALITIES}
    assert found == {space_of(encoder, modality).key for modality in MODALITIES}
    assert vector_facts.hash_packages([files("edgeclip_bench")]) == spaces._CODE
    for package in (spaces, vector_facts):
        with monkeypatch.context() as patch:
            patch.setattr(package, "_CODE", "another")
            found |= {space_of(encoder, modality).key for modality in MODALITIES}
    assert len(found) == 3 * len(MODALITIES)


@pytest.mark.parametrize("package", [spaces, vector_facts])
def test_what_other_code_kept_is_computed_again(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: ModuleType
) -> None:
    """Its space stays in the file until room is needed, and harms nothing: the first code finds its own again."""
    counts = []
    for code in ("first", "second", "first"):
        monkeypatch.setattr(package, "_CODE", code)
        with EmbeddingCache(tmp_path) as cache:
            embedder = Embedder(encoder, cache)
            np.testing.assert_array_equal(embedder.texts(["a"], 1)[0], encoder.encode_text("a"))
            counts.append(embedder.take_counts())
    assert counts == [Counts(inputs=1, computed=1), Counts(inputs=1, computed=1), Counts(inputs=1, cached=1)]


def test_a_space_says_what_it_holds(encoder: Encoder) -> None:
    """Its facts are kept beside the vectors, for a reader of the file."""
    space = space_of(encoder, "text")
    assert isinstance(space, Space) and space.dim == encoder.manifest.embedding_dim
    for word in (
        "session.force_spinning_stop",
        onnxruntime.__version__,
        features.version("libjpeg_turbo"),
        "manifest",
    ):
        assert str(word) in space.facts
