"""Name the space of a vector in the cache: the runtime's facts that decide it, and the evaluation's own code."""

import json
from importlib.resources import files

from edgeclip import Encoder, Manifest
from edgeclip.engine.vector_facts import hash_packages, vector_facts
from edgeclip.manifest import FIRST_GRAPH, Modality
from edgeclip.manifest import Space as SpaceName
from edgeclip_bench.quality.cache import Space

# Read when this is imported, as the runtime's.
_CODE = hash_packages([files("edgeclip_bench")])


def space_of(encoder: Encoder, modality: Modality, space: SpaceName = "single") -> Space:
    """The space of the encoder's vectors of a modality: all that decides them besides the input and its task."""
    facts = {"the modality": modality, "the space": space, "the evaluation's code": _CODE}
    facts |= vector_facts(encoder, graphs_of(encoder.manifest, modality))
    return Space(json.dumps(facts, sort_keys=True), encoder.manifest.dim(space), is_multi=space == "multi")


def graphs_of(manifest: Manifest, modality: Modality) -> list[str]:
    """The graphs that decide the vectors of a modality: its first, and those that take an output of that one."""
    first = FIRST_GRAPH[modality]
    outputs = {array.name for array in manifest.graphs[first].outputs}
    others = (name for name in manifest.graphs if name != first)
    return [first, *(name for name in others if outputs & {array.name for array in manifest.graphs[name].inputs})]
