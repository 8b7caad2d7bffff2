"""A bundle's graphs load in optimum.onnxruntime and answer as the Encoder does; Optimum's presets quantise them.

Skipped where Optimum is not installed: it does not go together with what the other tests are installed with, so
`.ci/optimum` runs these in an environment of their own.
"""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder, Manifest
from edgeclip.bundle.closeness import row_cosines
from edgeclip.engine.products import adds_in_16_bits
from edgeclip.inputs.square import preprocess_image
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip_bench.rivals.contenders import Contender, feed, open_run
from edgeclip_bench.rivals.recipes import GRAPHS, Material, made_up_batches, prepare
from edgeclip_quant import quantize_bundle
from tests.conftest import CHECKPOINT

pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx is not installed: .ci/optimum")

# Those whose 8-bit products are right here: x86 without VNNI adds two in 16 bits, and Optimum puts no guard on them.
PRESETS = ["avx2"] if adds_in_16_bits() else ["avx2", "avx512_vnni", "arm64"]
TEXTS = ["a red circle", "", "ein langer Satz mit vielen Worten", "<pad> three"]
# The same graphs and inputs in the same onnxruntime, but in one batch: measured 2e-7.
PARITY = 1e-6
# Worst cosine of a preset's int8 on the golden model: measured 0.9969.
WORST_COSINE = 0.99


@pytest.fixture(scope="module", params=["fp32", "int8"])
def folder(request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in which from_pretrained finds a config.json; it reads nothing in it when it is handed one."""
    out = tmp_path_factory.mktemp(request.param) / "bundle"
    if request.param == "fp32":
        shutil.copytree(bundle, out)
    else:
        quantize_bundle(bundle, out, cpu="auto")
    (out / "config.json").write_text("{}", encoding="utf-8")
    return out


def inputs(folder: Path, graph: str) -> tuple[str, NDArray[np.generic]]:
    """The name and one batch of what a graph is asked: padded ids (4, T), or pixels (3, S, S, 3)."""
    manifest = Manifest.read(folder)
    if graph == "vision":
        facts = manifest.need_image()
        return "pixel_values", np.stack([preprocess_image(picture, facts) for picture in pictures()])
    text = manifest.need_text()
    rows = TextTokenizer(folder / text.file, text).encode(TEXTS, None).rows
    width = max(map(len, rows))
    padded = [np.pad(row, (0, width - len(row)), constant_values=text.pad_id) for row in rows]
    return "input_ids", np.stack(padded).astype(np.int64)


def pictures() -> list[NDArray[np.uint8]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (70, 60 + 20 * index, 3), dtype=np.uint8) for index in range(3)]


def answers(folder: Path, graph: str) -> NDArray[np.float32]:
    with Encoder.open(folder, device="cpu") as encoder:
        return encoder.encode_text(TEXTS) if graph == "text" else encoder.encode_image(pictures())


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_answers_in_optimum_as_in_the_encoder(folder: Path, graph: str) -> None:
    import torch
    from optimum.onnxruntime import ORTModelForCustomTasks
    from transformers import PretrainedConfig

    file = Manifest.read(folder).graphs[graph].file
    model = ORTModelForCustomTasks.from_pretrained(folder, config=PretrainedConfig(), file_name=file)
    name, batch = inputs(folder, graph)
    output = {"text": "text_embeds", "vision": "image_embeds"}[graph]
    wanted = answers(folder, graph)
    assert np.abs(model(**{name: batch})[output] - wanted).max() <= PARITY
    assert np.abs(model(**{name: torch.from_numpy(batch)})[output].numpy() - wanted).max() <= PARITY


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_session_needs_no_config_file(bundle: Path, graph: str) -> None:
    import onnxruntime
    from optimum.onnxruntime import ORTModelForCustomTasks
    from transformers import PretrainedConfig

    session = onnxruntime.InferenceSession(
        bundle / Manifest.read(bundle).graphs[graph].file, providers=["CPUExecutionProvider"]
    )
    model = ORTModelForCustomTasks(config=PretrainedConfig(), session=session)
    name, batch = inputs(bundle, graph)
    (found,) = model(**{name: batch}).values()
    assert np.abs(found - answers(bundle, graph)).max() <= PARITY


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_quantises_the_bundles_vision_graph(bundle: Path, tmp_path: Path, preset: str) -> None:
    """All its products; of the text graph's, in which products are fused for the CPU, Optimum finds next to none."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForCustomTasks, ORTQuantizer
    from transformers import PretrainedConfig

    facts = Manifest.read(bundle).graphs["vision"]
    quantizer = ORTQuantizer.from_pretrained(bundle, file_name=facts.file)
    config = getattr(AutoQuantizationConfig, preset)(is_static=False, per_channel=True)
    quantizer.quantize(config, tmp_path, file_suffix="")
    assert census(tmp_path / facts.file)["MatMulInteger"] == facts.operators["MatMul"] > 0
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    model = ORTModelForCustomTasks.from_pretrained(tmp_path, config=PretrainedConfig(), file_name=facts.file)
    name, batch = inputs(bundle, "vision")
    worst = row_cosines(model(**{name: batch})["image_embeds"], answers(bundle, "vision")).min()
    assert WORST_COSINE <= worst < 1 - 1e-6


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_preset_quantises_the_plain_export(bundle: Path, work: Path, graph: str, preset: str) -> None:
    """The rival that `edgeclip_bench.rivals.run` measures."""
    manifest, rival = Manifest.read(bundle), f"optimum-{preset}"
    made = prepare(rival, material(bundle), graph, work)
    quantised, plain = (work / name / graph / made.file for name in (rival, "plain"))
    assert census(quantised)["MatMulInteger"] == census(plain)["MatMul"] > 0
    assert census(quantised)["Attention"] == census(plain)["Attention"] > 0
    contender = Contender(name=rival, recipe="", engine="onnxruntime", graph=graph, path=quantised, size_bytes=0)
    run = open_run(contender, 1)
    batches = made_up_batches(bundle, manifest, graph, texts=4, images=3, seed=1)
    found = np.concatenate([run(feed(contender, batch, manifest.need_image())) for batch in batches])
    path = bundle / manifest.graphs[graph].file
    fp32 = Contender(name="fp32", recipe="", engine="bundle", graph=graph, path=path, size_bytes=0)
    ask = open_run(fp32, 1)
    assert WORST_COSINE <= row_cosines(found, np.concatenate([ask(batch) for batch in batches])).min() < 1 - 1e-6


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the plain export is made once for all presets."""
    return tmp_path_factory.mktemp("work")


def material(bundle: Path) -> Material:
    return Material(checkpoint=CHECKPOINT, bundle=bundle, weights_sha256=Manifest.read(bundle).source.weights_sha256)


def census(graph: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)
