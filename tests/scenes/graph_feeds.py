"""The graphs of a jina-clip bundle by name, and what samples are as their feeds."""

from collections.abc import Mapping
from pathlib import Path

from edgeclip import Manifest
from edgeclip.families.family import Arrays
from edgeclip.manifest import Modality
from edgeclip_quant.inputs.feeder import Feeder
from edgeclip_quant.inputs.made_up import Samples, made_up_samples
from edgeclip_quant.quantize import feeds_of

GRAPHS = ("text", "vision")
MODALITY_OF: Mapping[str, Modality] = {"text": "text", "vision": "image"}


def open_feeder(bundle: Path) -> Feeder:
    """A bundle's feeder."""
    return Feeder(bundle, Manifest.read(bundle))


def made_up(bundle: Path, *, texts: int, images: int, seed: int = 0) -> Samples:
    """Made-up samples for a bundle."""
    return made_up_samples(open_feeder(bundle), texts=texts, images=images, seed=seed)


def feeds(bundle: Path, graph: str, samples: Samples) -> list[Arrays]:
    """The feeds of one graph."""
    return feeds_of(graph, open_feeder(bundle), samples)
