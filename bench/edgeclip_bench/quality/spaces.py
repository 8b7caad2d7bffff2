"""Under what the evaluation keeps an embedding: what the runtime says decides it, and the code that calls it here."""

import json
from importlib.resources import files

from edgeclip import Encoder
from edgeclip.engine.vector_facts import hash_packages, vector_facts
from edgeclip.manifest import TowerName
from edgeclip_bench.quality.cache import Space

# Read when this is imported, as the runtime's.
_CODE = hash_packages([files("edgeclip_bench")])


def space_of(encoder: Encoder, tower: TowerName) -> Space:
    """What decides the vectors of one of the encoder's towers, besides the input."""
    facts = {"the tower": tower, "the evaluation's code": _CODE, **vector_facts(encoder, [tower])}
    return Space(json.dumps(facts, sort_keys=True), encoder.manifest.embedding_dim)
