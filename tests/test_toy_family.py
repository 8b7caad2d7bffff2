"""A third-party family is a module in each package and a line in each list: a made-up one goes the whole way.

It averages token vectors, with a prompt for its one task. Nothing but the two lists is changed.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator
from safetensors.numpy import save_file

import edgeclip.families
from edgeclip import Encoder
from edgeclip.families.family import Arrays, Item, Prepared
from edgeclip.families.token_texts import TokenTexts
from edgeclip.inputs.images import ImageInput
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest, Modality, SingleSpace, Space, Spaces, TaskFacts, TextFacts
from tests.conftest import CHECKPOINT

edgeclip_export = pytest.importorskip("edgeclip_export.families", reason="torch is not installed")
import torch  # noqa: E402 - it is not there where the tests of the runtime alone run
from torch import Tensor, nn  # noqa: E402

from edgeclip_export import export_checkpoint  # noqa: E402
from edgeclip_export.checkpoint import TOKENIZER, Checkpoint  # noqa: E402
from edgeclip_export.families.family import Case, GraphPlan, ModelPlan, Needs, Repository  # noqa: E402
from edgeclip_export.texts import TEXTS, reset_tokenizer, tokenize  # noqa: E402
from edgeclip_export.towers.layers import Linear, l2_normalize  # noqa: E402
from edgeclip_export.towers.tower import Tower  # noqa: E402
from edgeclip_export.towers.weights import LazyWeight  # noqa: E402
from edgeclip_graph.traits import Traits  # noqa: E402

PROMPT = "query: "
WORDS, WIDTH = 600, 8
SAME = 1e-6


class Average(Tower[Tensor]):
    """The mean of the tokens' vectors through one layer, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(WORDS, WIDTH))
        self.out = Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.end(self.through(input_ids))

    def layers(self) -> Sequence[nn.Module]:
        return [self.out]

    def begin(self, *inputs: Tensor) -> Tensor:
        return self.tokens[inputs[0]].mean(dim=1)

    def step(self, layer: nn.Module, state: Tensor) -> Tensor:
        found: Tensor = layer(state)
        return found

    def end(self, state: Tensor) -> Tensor:
        return l2_normalize(state)


class ExportedToy:
    """The export's side."""

    name = "toy"
    models = "toys"
    repositories: Mapping[str, Repository] = {}

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "toy"

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Every toy can be exported."""

    def needs(self, config: Mapping[str, Any]) -> Needs:
        return Needs()

    def tensor_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"table": (WORDS, WIDTH), "weight": (WIDTH, WIDTH), "bias": (WIDTH,)}

    @contextmanager
    def open(self, checkpoint: Checkpoint, task: str | None) -> Iterator[ModelPlan]:
        from safetensors.torch import load_file

        tensors = load_file(checkpoint.folder / "model.safetensors")
        facts = TextFacts(file=TOKENIZER, max_length=64, bos_id=0, eos_id=2, pad_id=1)
        tokenizer = reset_tokenizer((checkpoint.folder / TOKENIZER).read_bytes(), facts, WORDS)
        rows = tokenize(tokenizer, facts, TEXTS)
        graph = GraphPlan(
            name="text",
            build=Average,
            examples={"input_ids": torch.full((2, 3), 2)},
            dynamic={"input_ids": {0: "batch", 1: "sequence"}},
            outputs={"vector": "single"},
            weights={
                "tokens": LazyWeight((WORDS, WIDTH), lambda: tensors["table"].clone()),
                "out.weight": LazyWeight((WIDTH, WIDTH), lambda: tensors["weight"].T.contiguous()),
                "out.bias": LazyWeight((WIDTH,), lambda: tensors["bias"].clone()),
            },
            traits=Traits(),
            cases=lambda answers: [Case(modality="text", feed={"input_ids": row}) for row in rows],
        )
        yield ModelPlan(
            graphs=(graph,),
            spaces=Spaces(single=SingleSpace(dim=WIDTH, matryoshka_dims=(4, WIDTH), is_strict=True), multi=None),
            text=facts,
            image=None,
            tokenizer=tokenizer,
            tasks={"search": TaskFacts(prompt=PROMPT, adapter=None, modalities=("text",))},
            selftest={"texts": np.array(TEXTS), "tasks": np.array([""] * len(TEXTS))},
            layout="a toy",
        )


class RunToy:
    """The runtime's side."""

    def __init__(self, manifest: Manifest, tokenizer: Callable[[], TextTokenizer]) -> None:
        self._manifest, self._texts = manifest, TokenTexts(manifest, tokenizer, masks_padding=False)

    def texts(self, texts: Sequence[str], task: str | None, max_length: int | None) -> Prepared:
        return self._texts.texts(texts, task, max_length)

    def token_ids(self, ids: Sequence[Sequence[int]], task: str | None, max_length: int | None) -> Prepared:
        return self._texts.token_ids(ids, task, max_length)

    def image(self, image: ImageInput, task: str | None, *, max_pixels: int | None, label: str) -> Item:
        self._manifest.check_modality("image")
        raise AssertionError("it takes texts alone")

    def feed(self, items: Sequence[Item]) -> Arrays:
        return {"input_ids": np.stack([item.arrays["input_ids"] for item in items])}

    def follow(self, item: Item, outputs: Arrays) -> Item | None:
        return None

    def output(self, graph: str, space: Space) -> str:
        return "vector"

    def made_up(self, draw: Generator, modality: Modality, tokens: int) -> Item:
        return self._texts.made_up(draw, tokens)

    def billed(self, item: Item, size: tuple[int, int] | None) -> int:
        return item.tokens


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy checkpoint, exported."""
    known = {**edgeclip.families.FAMILIES, "toy": RunToy}
    monkeypatch.setattr(edgeclip.families, "FAMILIES", known)
    monkeypatch.setattr(edgeclip_export, "FAMILIES", (*edgeclip_export.FAMILIES, ExportedToy()))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    draw = np.random.default_rng(0)
    shapes = ExportedToy().tensor_shapes({})
    save_file(
        {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    (folder / TOKENIZER).write_bytes((CHECKPOINT / TOKENIZER).read_bytes())
    export_checkpoint(folder, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_new_family_goes_from_checkpoint_to_vectors(bundle: Path) -> None:
    """Its vectors are those that numpy computes from the checkpoint; task, dimensions and self-test are its own."""
    from safetensors.numpy import load_file

    tensors = load_file(bundle.parent / "checkpoint" / "model.safetensors")
    with Encoder.open(bundle, device="cpu", selftest=True) as encoder:
        assert (encoder.modalities, encoder.tasks) == (("text",), ("search",))
        ids = encoder.prepare_texts([PROMPT + "a red bicycle"]).items[0].arrays["input_ids"]
        wanted = tensors["table"][ids].mean(axis=0) @ tensors["weight"].T + tensors["bias"]
        found = encoder.encode_text("a red bicycle", task="search")
        assert np.abs(found - wanted / np.linalg.norm(wanted)).max() <= SAME
        cut = encoder.encode_text("a red bicycle", task="search", truncate_dim=4)
        assert np.abs(cut - wanted[:4] / np.linalg.norm(wanted[:4])).max() <= SAME


def test_the_command_line_takes_it_as_any_other(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgeclip.cli import main

    assert main(["check", str(bundle)]) == 0
    assert main(["embed", str(bundle), "--text", "a", "--task", "search"]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["embedding"]) == WIDTH
    assert main(["embed", str(bundle), "--image", "a.png"]) == 1
    assert "takes no images" in capsys.readouterr().err
