"""A jina-embeddings-v3 checkpoint's weights and adapters, from either of its layouts.

Which layout it is, the names of the tensors say. Wrappers in names are undone (`edgeclip_export.saved_names`);
everything else is strict.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeclip.errors import BuildError
from edgeclip_export.checkpoint import Checkpoint, read_json
from edgeclip_export.families.jina_embeddings_v3.config import TextConfig
from edgeclip_export.families.jina_embeddings_v3.layout import (
    BUFFERS,
    PREFIX,
    adapter_files,
    adapter_shapes,
    base_shapes,
    converted_parts,
    is_table,
    official_shapes,
)
from edgeclip_export.saved_names import check_tensors, name_officially
from edgeclip_export.settings import count, number
from edgeclip_export.tensors import open_tensors
from edgeclip_export.towers.lora import Adapter, official_adapter
from edgeclip_export.towers.weights import Read
from edgeclip_export.towers.xlmr_layout import PARAMETRIZED, TOKEN_TABLE, base_weight

# Settings of peft that would need other arithmetic, and what each is without it.
_PLAIN_LORA: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "use_rslora": (None, False),
    "bias": (None, "none"),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Tensors by official name, each as fresh fp32.

    `base` gives the weight of a layer or table without any adapter by the layer's name. `adapters` are by task, all
    of `rank`. `notes` are what was undone in names, a sentence each.
    """

    read: Read
    base: Read
    adapters: Mapping[str, Adapter]
    rank: int
    layout: str
    notes: tuple[str, ...]


@contextmanager
def open_weights(checkpoint: Checkpoint, config: TextConfig) -> Iterator[Weights]:
    """Check the checkpoint's tensors against its configuration, then read them by official name.

    Raises BuildError for a tensor that is missing, extra, of another shape or type, and for adapters that are
    missing, of different ranks or of another kind than plain LoRA; what is read raises it for NaN and infinity.
    """
    with ExitStack() as stack:
        tensors = stack.enter_context(open_tensors(checkpoint))
        where = str(checkpoint.where)
        names = name_officially(tensors.places.keys(), (f"{PREFIX}emb_ln.weight",), where)

        def read(name: str) -> Tensor:
            return tensors.read(names.saved[name])

        if any(PARAMETRIZED in name for name in names.saved):
            check_tensors(tensors, names.saved, official_shapes(config), where, ignored=BUFFERS)
            lora = config.lora
            yield Weights(
                read=read,
                base=lambda name: read(base_weight(lora, name)),
                adapters={task: official_adapter(read, lora, index) for index, task in enumerate(config.tasks)},
                rank=lora.rank,
                layout="the official layout",
                notes=names.notes(where),
            )
            return
        check_tensors(tensors, names.saved, base_shapes(config), where, ignored=BUFFERS)
        adapters = {task: _open_converted(checkpoint, config, task, stack) for task in config.tasks}
        ranks = {task: rank for task, (rank, _) in adapters.items()}
        if len(set(ranks.values())) > 1:
            raise BuildError(f"{checkpoint.folder}: its adapters have the ranks {ranks}; wanted one rank for all")
        yield Weights(
            read=read,
            base=lambda name: read(f"{name}.weight"),
            adapters={task: adapter for task, (_, adapter) in adapters.items()},
            rank=next(iter(ranks.values())),
            layout=f"the converted layout, a base and {len(adapters)} PEFT folders",
            notes=names.notes(where),
        )


def _open_converted(checkpoint: Checkpoint, config: TextConfig, task: str, stack: ExitStack) -> tuple[int, Adapter]:
    """One adapter of the converted layout and its rank; its file is open as long as `stack` is."""
    settings_file, weights_file = (checkpoint.folder / name for name in adapter_files(task))
    for path in (settings_file, weights_file):
        if not path.is_file():
            raise BuildError(
                f"{checkpoint.folder}: its weights have no adapters, and there is no {path.parent.name}/{path.name} "
                f"for the task {task!r}; fetch or copy it too"
            )
    rank, scale = _read_settings(settings_file)
    opened = Checkpoint(folder=weights_file.parent, config={}, weights=(weights_file,))
    tensors = stack.enter_context(open_tensors(opened))
    where = str(weights_file)
    anchor = f"{PREFIX}{TOKEN_TABLE}.lora_embedding_A"
    names = name_officially(tensors.places.keys(), (anchor,), where)
    check_tensors(tensors, names.saved, adapter_shapes(config, rank), where, ignored=())

    def read(name: str) -> Tensor:
        return tensors.read(names.saved[name])

    def factors(name: str) -> tuple[Tensor, Tensor]:
        if is_table(name):
            return read(f"{name}.lora_embedding_A").T, read(f"{name}.lora_embedding_B").T
        parts = converted_parts(name)
        first, *others = (read(f"{part}.lora_A.weight") for part in parts)
        if not all(torch.equal(first, other) for other in others):
            raise BuildError(f"{where}: {', '.join(parts)} have different lora_A; wanted one for all")
        return first, torch.cat([read(f"{part}.lora_B.weight") for part in parts])

    return rank, Adapter(scale=scale, factors=factors)


def _read_settings(path: Path) -> tuple[int, float]:
    """The rank and the scale in an adapter_config.json."""
    settings: Mapping[str, Any] = read_json(path)
    for name, allowed in _PLAIN_LORA.items():
        if settings.get(name) not in allowed:
            raise BuildError(f"{path}: {name} is {settings.get(name)!r}; only {allowed[-1]!r} is supported")
    rank = count(path.parent.name, settings, "r")
    return rank, number(path.parent.name, settings, "lora_alpha") / rank
