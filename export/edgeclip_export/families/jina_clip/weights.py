"""A checkpoint's weights under their official names, however they were saved.

Three things are undone, and said in words:

- Wrappers in names. DistributedDataParallel adds `module.`, torch.compile `_orig_mod.`, FSDP its own, a trainer's
  model an attribute before all of them. What stands before every name goes, and so do wrappers inside names.
- LoRA that was merged. Then weights are plain (`Wqkv.weight`), and of which adapter they are nobody can see.
- Buffers that some versions of the reference saved along. Towers compute them, so they are passed over.

Everything else is strict: a tensor that is missing, extra or of another shape is refused by its name.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from edgeclip.errors import BuildError
from edgeclip_export.checkpoint import Checkpoint
from edgeclip_export.families.jina_clip.config import JinaClipConfig
from edgeclip_export.families.jina_clip.tensors import BUFFERS, PARAMETRIZED, TEXT, VISION, tensor_shapes
from edgeclip_export.recognition import list_names
from edgeclip_export.tensors import open_tensors

# Parts of a name that wrappers of torch add wherever they stand; no official name has one.
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
# Where the names begin is seen by one of these: the official name that each checkpoint has once.
_ANCHORS = (VISION + "cls_token", TEXT + "emb_ln.weight", "logit_scale")
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
        where = str(checkpoint.weights[0] if len(checkpoint.weights) == 1 else checkpoint.folder)
        official, removed = name_officially(tensors.places.keys(), where)
        notes = [f"{where}: {_quote(removed)} in the names of its tensors was left out"] if removed else []
        if any(PARAMETRIZED in name for name in official):
            if not config.text.lora.adapters:
                raise BuildError(f"{where}: holds adapters, and config.json names none in lora_adaptations")
        else:
            _refuse_unmerged(official, where)
            lora = config.text.lora
            notes.append(
                f"{where}: its LoRA is merged already, and no file says of which task; its vectors are "
                f"jina-clip-v2's if it was of {lora.task or 'retrieval.query'}"
            )
            config = replace(config, text=replace(config.text, lora=replace(lora, adapters=0)))
        shapes = tensor_shapes(config)
        kept = {name for name in official if not name.endswith(BUFFERS)}
        if missing := [name for name in shapes if name not in kept]:
            raise BuildError(f"{where}: {list_names(missing)} missing")
        if extra := sorted(kept - shapes.keys()):
            raise BuildError(f"{where}: {list_names(extra)} not part of a checkpoint with this config.json")
        for name, shape in shapes.items():
            tensors.check(official[name], shape)
        yield Weights(config=config, read=lambda name: tensors.read(official[name]), notes=tuple(notes))


def name_officially(names: Collection[str], where: str) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The saved name of each tensor by its official one, and what was left out of the names.

    A name that does not begin as the others do keeps its beginning. BuildError if two become one.
    """
    plain = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    prefixes: list[str] = next(filter(None, (_before(plain.values(), anchor) for anchor in _ANCHORS)), [""])
    if len(prefixes) > 1:
        raise BuildError(f"{where}: holds two models, {_quote(prefixes)}; save one of them alone")
    (prefix,) = prefixes
    official: dict[str, str] = {}
    removed: Counter[str] = Counter()
    for name, without in plain.items():
        short = without.removeprefix(prefix)
        if short in official:
            raise BuildError(f"{where}: {official[short]} and {name} are both {short}; save the model again")
        official[short] = name
        removed[_left_out(name, short)] += 1
    del removed[""]
    return official, tuple(part for part, _ in removed.most_common())


def _before(names: Collection[str], anchor: str) -> list[str]:
    """What stands before the anchor, once for each name that ends with it."""
    return sorted({name.removesuffix(anchor) for name in names if name == anchor or name.endswith(f".{anchor}")})


def _left_out(name: str, short: str) -> str:
    """The parts of a saved name that its official one does not have: `module.`, or `module._orig_mod.`."""
    rest = short.split(".")
    parts: list[str] = []
    for part in reversed(name.split(".")):
        if rest and rest[-1] == part:
            rest.pop()
        else:
            parts.append(f"{part}.")
    return "".join(reversed(parts))


def _refuse_unmerged(names: Collection[str], where: str) -> None:
    if found := sorted(name for name in names if any(part in f".{name}." for part in _ADAPTER_PARTS)):
        raise BuildError(
            f"{where}: {list_names(found)} are peft's, not merged; merge them (merge_and_unload) and save again"
        )


def _quote(parts: Sequence[str]) -> str:
    return ", ".join(f"`{part}`" for part in parts)
