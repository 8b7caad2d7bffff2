"""The small bundle of every family for the CPU, exported once."""

from collections.abc import Mapping
from pathlib import Path

from edgeclip_export import export_checkpoint
from tests.conftest import CHECKPOINT, DATA, made_once
from tests.scenes import nllb_goldens, v1_goldens, v3_goldens

_V4 = DATA / "jina_embeddings_v4" / "checkpoint"
_PLACES: Mapping[str, tuple[str, Path]] = {
    "jina-clip-v1": ("v1/cpu", v1_goldens.CHECKPOINT),
    "jina-clip-v2": ("golden-cpu", CHECKPOINT),
    "jina-embeddings-v3": ("v3/cpu", v3_goldens.OFFICIAL),
    "jina-embeddings-v4": ("v4-cpu", _V4),
    "nllb-clip-siglip": ("nllb/cpu", nllb_goldens.CHECKPOINT),
}
FAMILIES = tuple(_PLACES)


def small_bundle(family: str, shared: Path) -> Path:
    """The fp32 bundle of a family's golden checkpoint. Read only."""
    place, checkpoint = _PLACES[family]
    return made_once(shared / place, lambda out: export_checkpoint(checkpoint, out))
