"""The bundle of a jina-embeddings-v3 checkpoint as plans: one graph, an adapter for each task, and the self-test.

Adapters are inputs of the graph, so one graph answers for every task, and without an adapter, given zeros, for the
base model. LoRA is kept factored, x W + (x A) B, which is exact: the adapters are 10 MB each, where merged weights
would be 2.2 GB. With one task that adapter is merged, and the graph is plain.

There is no mask. The reference uses the mask as it is given, the runtime batches texts of one length, and a literal
`<pad>` in a text is a token like any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from edgeclip.errors import BuildError
from edgeclip.manifest import SingleSpace, Spaces, TaskFacts, TextFacts
from edgeclip_export.checkpoint import TOKENIZER, Checkpoint, read_json
from edgeclip_export.families.family import AdapterPlan, Case, GraphPlan, ModelPlan
from edgeclip_export.families.jina_embeddings_v3.config import TextConfig, parse_config
from edgeclip_export.families.jina_embeddings_v3.layout import PREFIX, TOKENIZER_CONFIG
from edgeclip_export.families.jina_embeddings_v3.weights import Weights, open_weights
from edgeclip_export.texts import TEXTS, reset_tokenizer, tokenize
from edgeclip_export.towers.xlmr import XlmrTower
from edgeclip_export.towers.xlmr_fold import fold_xlmr, pack_adapter
from edgeclip_export.towers.xlmr_layout import Shapes, adapter_shapes
from edgeclip_graph.traits import Traits

_GRAPH, _IDS = "text", "input_ids"
# Texts of the self-test that each task is asked: two languages, and one with a literal special token.
_ASKED = (TEXTS[0], TEXTS[2], TEXTS[4])


@contextmanager
def open_model(checkpoint: Checkpoint, task: str | None) -> Iterator[ModelPlan]:
    """Plan the bundle of a checkpoint, whose weights are read while this is open.

    Raises BuildError for a checkpoint that is not as its config.json says, and for a task that it does not have.
    """
    limits = checkpoint.folder / TOKENIZER_CONFIG
    config = parse_config(checkpoint.config, read_json(limits).get("model_max_length") if limits.is_file() else None)
    if task is not None and task not in config.tasks:
        raise BuildError(f"task is {task!r}, wanted one that the model has: {', '.join(map(repr, config.tasks))}")
    text = TextFacts(
        file=TOKENIZER,
        max_length=config.max_tokens,
        bos_id=config.bos_id,
        eos_id=config.eos_id,
        pad_id=config.pad_id,
    )
    tokenizer = reset_tokenizer((checkpoint.folder / TOKENIZER).read_bytes(), text, config.vocab_size)
    questions = _questions(config, task)
    prompted = [f"{config.tasks[name] if name else ''}{sentence}" for sentence, name in questions]
    rows = tokenize(tokenizer, text, prompted)
    with open_weights(checkpoint, config) as weights:
        shapes = {} if task is not None else adapter_shapes(config, weights.rank)
        names = [None if task is not None else name for _, name in questions]
        yield ModelPlan(
            graphs=(_plan_graph(config, weights, task, shapes, rows, names),),
            spaces=Spaces(
                single=SingleSpace(dim=config.width, matryoshka_dims=config.matryoshka_dims, is_strict=True),
                multi=None,
            ),
            text=text,
            image=None,
            tokenizer=tokenizer,
            tasks={
                name: TaskFacts(prompt=prompt, adapter=name if task is None else None, modalities=("text",))
                for name, prompt in config.tasks.items()
                if task in (None, name)
            },
            task_required=task is not None,
            adapters=_plan_adapters(config, weights, shapes) if task is None else {},
            selftest={
                "texts": np.array([sentence for sentence, _ in questions]),
                "tasks": np.array([name or "" for _, name in questions]),
                **{f"input_ids_{index}": row for index, row in enumerate(rows)},
            },
            layout=weights.layout,
            notes=weights.notes,
        )


def _questions(config: TextConfig, task: str | None) -> list[tuple[str, str | None]]:
    """The texts of the self-test, each with its task: none and every one, or the one that is merged."""
    if task is not None:
        return [(sentence, task) for sentence in TEXTS]
    return [(sentence, None) for sentence in TEXTS] + [
        (sentence, name) for name in config.tasks for sentence in _ASKED
    ]


def _plan_graph(
    config: TextConfig,
    weights: Weights,
    task: str | None,
    shapes: Shapes,
    rows: Sequence[NDArray[np.int64]],
    adapters: Sequence[str | None],
) -> GraphPlan:
    asked = list(zip(rows, adapters, strict=True))
    examples = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return GraphPlan(
        name=_GRAPH,
        build=lambda: XlmrTower(config, masked_id=None),
        examples={_IDS: torch.full((2, 3), config.eos_id), **examples},
        dynamic={_IDS: {0: "batch", 1: "sequence"}},
        outputs={"text_embeds": "single"},
        weights=fold_xlmr(config, PREFIX, weights.read, weights.base, weights.adapters[task] if task else None),
        traits=Traits(chooses_by_rows=True),
        cases=lambda answers: [Case(modality="text", feed={_IDS: row}, adapter=name) for row, name in asked],
        adapter_inputs=tuple(shapes),
    )


def _plan_adapters(config: TextConfig, weights: Weights, shapes: Shapes) -> Mapping[str, AdapterPlan]:
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())

    def plan(name: str) -> AdapterPlan:
        adapter = weights.adapters[name]
        return AdapterPlan(
            graph=_GRAPH, rank=weights.rank, size_bytes=size, arrays=pack_adapter(config, PREFIX, adapter)
        )

    return {name: plan(name) for name in config.tasks}
