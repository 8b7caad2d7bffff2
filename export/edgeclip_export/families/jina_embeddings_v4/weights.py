"""A jina-embeddings-v4 checkpoint's weights and adapters under their official names, held strictly against them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from edgeclip_export.checkpoint import Checkpoint
from edgeclip_export.families.jina_embeddings_v4.adapters import (
    FILE,
    AdapterSettings,
    adapter_tensor,
    adapter_tensor_shapes,
)
from edgeclip_export.families.jina_embeddings_v4.config import JinaEmbeddingsV4Config
from edgeclip_export.families.jina_embeddings_v4.tensors import tensor_shapes
from edgeclip_export.saved_names import check_tensors, name_officially
from edgeclip_export.tensors import open_files, open_tensors
from edgeclip_export.towers.decoder_layout import PROJECTOR
from edgeclip_export.towers.lora import Adapter
from edgeclip_export.towers.weights import Read, Table

_ANCHORS = (f"{PROJECTOR}.weight",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Tensors by official name, each as fresh fp32, a table that is not read yet, and the adapters by their tasks.

    `notes` are what was undone, a sentence each.
    """

    read: Read
    table: Callable[[str], Table]
    adapters: dict[str, Adapter]
    notes: tuple[str, ...]


@contextmanager
def open_weights(
    checkpoint: Checkpoint, config: JinaEmbeddingsV4Config, settings: AdapterSettings
) -> Iterator[Weights]:
    """Check the checkpoint's weights and adapters against its configuration, then read them by official name.

    Raises BuildError for a tensor that is missing, extra, of another shape or type, and for names that cannot be told
    apart without their wrappers; what is read raises it for NaN and infinity.
    """
    where, file = str(checkpoint.where), checkpoint.folder / FILE
    with open_tensors(checkpoint) as base, open_files([file]) as lora:
        names = name_officially(base.places.keys(), _ANCHORS, where)
        check_tensors(base, names.saved, tensor_shapes(config), where, ignored=())
        shapes = adapter_tensor_shapes(config.decoder, config.adapters, settings.rank)
        check_tensors(lora, {name: name for name in lora.places}, shapes, str(file), ignored=())

        def adapter(task: str) -> Adapter:
            def factors(layer: str) -> tuple[Tensor, Tensor]:
                a, b = (lora.read(adapter_tensor(layer, part, task)) for part in "AB")
                return a, b

            return Adapter(scale=settings.scale, factors=factors)

        yield Weights(
            read=lambda name: base.read(names.saved[name]),
            table=lambda name: base.table(names.saved[name]),
            adapters={task: adapter(task) for task in config.adapters},
            notes=names.notes(where),
        )
