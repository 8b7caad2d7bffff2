"""A jina-clip checkpoint's weights under their official names, however they were saved.

Three things are undone, and said in words: wrappers in names (`edgeclip_export.saved_names`), and (LoRA is
jina-clip-v2's alone):

- LoRA that was merged. Then weights are plain (`Wqkv.weight`), and of which adapter they are nobody can see.
- Buffers that some versions of the reference saved along. Towers compute them, so they are passed over.

Everything else is strict.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from edgeclip.errors import BuildError
from edgeclip_export.checkpoint import Checkpoint, list_names
from edgeclip_export.families.jina_clip.config import JinaClipConfig, TextConfig
from edgeclip_export.families.jina_clip.tensors import BUFFERS, VISION, tensor_shapes, text_prefix
from edgeclip_export.saved_names import check_tensors, name_officially
from edgeclip_export.tensors import open_tensors
from edgeclip_export.towers.xlmr_layout import PARAMETRIZED

_ADAPTER_PARTS = (".lora_A.", ".lora_B.", ".base_layer.", ".lora_embedding_A", ".lora_embedding_B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Tensors by official name, each as fresh fp32; `config` says whether adapters are among them.

    `notes` are what was undone, a sentence each.
    """

    config: JinaClipConfig
    read: Callable[[str], Tensor]
    notes: tuple[str, ...]


@contextmanager
def open_weights(checkpoint: Checkpoint, config: JinaClipConfig) -> Iterator[Weights]:
    """Check the checkpoint's weights against its configuration, then read them by official name.

    Raises BuildError for a tensor that is missing, extra, of another shape or type, and for names that cannot be
    told apart without their wrappers; what is read raises it for NaN and infinity.
    """
    with open_tensors(checkpoint) as tensors:
        where = str(checkpoint.where)
        anchors = (f"{VISION}cls_token", f"{text_prefix(config.text)}emb_ln.weight", "logit_scale")
        names = name_officially(tensors.places.keys(), anchors, where)
        notes, text = names.notes(where), config.text
        if not any(PARAMETRIZED in name for name in names.saved):
            _refuse_unmerged(names.saved, where)
            if isinstance(text, TextConfig):
                notes += (
                    f"{where}: its LoRA is merged already, and no file says of which task; its vectors are "
                    f"jina-clip-v2's if it was of {text.lora.task or 'retrieval.query'}",
                )
                config = replace(config, text=replace(text, lora=replace(text.lora, adapters=0)))
        elif isinstance(text, TextConfig) and not text.lora.adapters:
            raise BuildError(f"{where}: holds adapters, and config.json names none in lora_adaptations")
        check_tensors(tensors, names.saved, tensor_shapes(config), where, ignored=BUFFERS)
        yield Weights(config=config, read=lambda name: tensors.read(names.saved[name]), notes=notes)


def _refuse_unmerged(names: Collection[str], where: str) -> None:
    if found := sorted(name for name in names if any(part in f".{name}." for part in _ADAPTER_PARTS)):
        raise BuildError(
            f"{where}: {list_names(found)} are peft's, not merged; merge them (merge_and_unload) and save again"
        )
