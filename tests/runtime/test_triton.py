"""`edgeclip export-triton`: a repository that Triton can load, and a client in its README that gets our vectors."""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgeclip import Encoder, InputError, Manifest
from edgeclip.manifest import TARGETS, Target
from edgeclip.triton import export_triton, model_config, readme
from tests.conftest import DATA
from tests.scenes.command import NEEDS_SHELL, Captured, refusal, run, run_shell
from tests.scenes.damage import flip_byte
from tests.scenes.page_bundle import make_page_bundle
from tests.scenes.text_bundle import make_text_bundle
from tests.scenes.triton_config import pairs, parse

GRAPHS = ("text", "vision")
IMAGES = [str(DATA / "images" / name) for name in ("rgb_odd.png", "gray.jpg")]
TEXTS = ["a red bicycle", "ein rotes Fahrrad"]
# onnxruntime with every optimisation, as Triton's backend opens a graph, beside ours. Measured: 1.2e-7.
SAME = 5e-6


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU bundle's repository. Read only."""
    out = tmp_path_factory.mktemp("triton") / "models"
    export_triton(bundle, out)
    return out


def test_the_layout_is_the_documented_one_for_models_of_several_files(repository: Path, bundle: Path) -> None:
    files = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    models = {
        f"{graph}_model/{name}"
        for graph in GRAPHS
        for name in ("config.pbtxt", "1/model.onnx/model.onnx", f"1/model.onnx/{graph}.onnx_data")
    }
    assert files == {"README.md", "manifest.json", "tokenizer.json"} | models
    assert Manifest.read(repository) == Manifest.read(bundle)


def test_the_bundle_stays_as_it_was(repository: Path, bundle: Path) -> None:
    """Copies: weights with a second hard link are refused by onnx and onnx_ir, so by `edgeclip quantize`."""
    for graph in GRAPHS:
        weights = bundle / f"{graph}.onnx_data"
        copy = repository / f"{graph}_model/1/model.onnx/{graph}.onnx_data"
        assert copy.read_bytes() == weights.read_bytes()
        assert weights.stat().st_nlink == copy.stat().st_nlink == 1 and not copy.is_symlink()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_config_says_what_the_graph_takes(bundles: dict[Target, Path], target: Target, graph: str) -> None:
    manifest = Manifest.read(bundles[target])
    config = parse(model_config(manifest, graph))
    session = onnxruntime.InferenceSession(bundles[target] / f"{graph}.onnx", providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    kinds = {"tensor(int64)": "TYPE_INT64", "tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
    for tensor, found in ((given, config["input"]), (answer, config["output"])):
        shape = [size if isinstance(size, int) else -1 for size in tensor.shape[1:]]
        assert found == [{"name": tensor.name, "data_type": kinds[tensor.type], "dims": shape}]
    assert config["name"] == f"{graph}_model" and config["backend"] == "onnxruntime"
    assert config["max_batch_size"] > 1 and "dynamic_batching" in config
    kind = "KIND_CPU" if target == "cpu" else "KIND_GPU"
    assert config["instance_group"] == [{"kind": kind, "count": 1}]
    ((warm,),) = (entry["inputs"] for entry in config["model_warmup"])
    assert warm["key"] == given.name and min(warm["value"]["dims"]) > 0


@pytest.mark.parametrize("graph", GRAPHS)
def test_options_are_those_of_the_target(bundles: dict[Target, Path], graph: str) -> None:
    configs = {target: parse(model_config(Manifest.read(bundles[target]), graph, threads=3)) for target in TARGETS}
    assert pairs(configs["cpu"]["parameters"])["intra_op_thread_count"] == "3"
    assert "optimization" not in configs["cpu"] and "optimization" not in configs["cuda"]
    # An arena that grows by powers of two is the default as soon as there are any parameters.
    assert pairs(configs["cuda"]["parameters"])["arena_extend_strategy"] == "1"
    (accelerator,) = configs["tensorrt"]["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    options = pairs(accelerator["parameters"])
    assert accelerator["name"] == "tensorrt" and options["precision_mode"] == "FP32"
    assert options["trt_profile_max_shapes"].startswith("input_ids:" if graph == "text" else "pixel_values:")


def test_the_config_follows_the_precision(int8_bundle: Path) -> None:
    import dataclasses

    manifest = Manifest.read(int8_bundle)
    assert "intra_op_thread_count" in model_config(manifest, "text")
    for precision, mode in (("int8", "INT8"), ("fp16", "FP16")):
        graphs = {**manifest.graphs, "text": dataclasses.replace(manifest.graphs["text"], precision=precision)}
        config = parse(model_config(dataclasses.replace(manifest, target="tensorrt", graphs=graphs), "text"))
        (accelerator,) = config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
        assert pairs(accelerator["parameters"])["precision_mode"] == mode
    assert "1.24 or later" in readme(manifest)


@pytest.mark.parametrize("target", TARGETS)
def test_the_readme_names_what_this_model_needs(bundles: dict[Target, Path], target: Target) -> None:
    text = readme(Manifest.read(bundles[target]))
    assert "Represent the query for retrieving evidence documents: " in text and "float32 [64]" in text
    assert ("--gpus all" in text) == (target != "cpu")
    assert ("/engines" in text) == (target == "tensorrt")
    assert not re.search(r"\$[a-z_]", text)


class Triton(BaseHTTPRequestHandler):
    """The part of Triton that is wanted here: KServe's protocol with binary tensors, and the backend's session."""

    sessions: dict[str, Any]

    def do_POST(self) -> None:
        model = self.path.split("/")[3]
        assert self.path == f"/v2/models/{model}/infer"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        header = json.loads(body[:length])
        (tensor,) = header["inputs"]
        assert header["parameters"] == {"binary_data_output": True}
        assert tensor["parameters"]["binary_data_size"] == len(body) - length
        dtype = {"INT64": np.int64, "UINT8": np.uint8}[tensor["datatype"]]
        batch = np.frombuffer(body[length:], dtype).reshape(tensor["shape"])
        session = self.sessions[model]
        vectors = session.run(None, {tensor["name"]: batch})[0]
        output = {"name": session.get_outputs()[0].name, "datatype": "FP32", "shape": vectors.shape}
        answer = json.dumps({"outputs": [output | {"parameters": {"binary_data_size": vectors.nbytes}}]}).encode()
        self.send_response(200)
        self.send_header("Inference-Header-Content-Length", str(len(answer)))
        self.send_header("Content-Length", str(len(answer) + vectors.nbytes))
        self.end_headers()
        self.wfile.write(answer + vectors.tobytes())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(repository: Path) -> Iterator[str]:
    """A stand-in for Triton on the repository, with the options that its backend has by default."""
    Triton.sessions = {
        model: onnxruntime.InferenceSession(
            repository / model / "1" / "model.onnx" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        for model in ("text_model", "vision_model")
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), Triton) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_the_client_of_the_readme_gets_the_encoders_vectors(
    repository: Path, server: str, encoder: Encoder, tmp_path: Path
) -> None:
    """As it stands there, without onnxruntime."""
    (program,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    client = tmp_path / "client.py"
    client.write_text(program + "\nassert 'onnxruntime' not in sys.modules\n", encoding="utf-8")
    command = [sys.executable, client, repository, server, *IMAGES]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert np.abs(np.array(found["texts"]) - encoder.encode_text(TEXTS)).max() <= SAME
    assert np.abs(np.array(found["images"]) - encoder.encode_image(IMAGES)).max() <= SAME


def test_the_verb_says_what_it_wrote(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    status, out, err = run("export-triton", bundle, tmp_path / "models", "--threads", 2, capsys=capsys)
    assert (status, out) == (0, "")
    assert err.startswith(f"{tmp_path / 'models'}: text_model and vision_model, ") and err.count("\n") == 1
    config = parse((tmp_path / "models/vision_model/config.pbtxt").read_text())
    assert pairs(config["parameters"])["intra_op_thread_count"] == "2"


def test_what_is_there_is_not_overwritten(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "models").mkdir()
    assert "exists already" in refusal("export-triton", bundle, tmp_path / "models", capsys=capsys)
    assert list((tmp_path / "models").iterdir()) == []
    assert "no such bundle" in refusal("export-triton", tmp_path / "nowhere", tmp_path / "out", capsys=capsys)


@pytest.mark.parametrize("name", ["tokenizer.json", "vision.onnx_data"])
def test_a_damaged_bundle_is_not_served(copied_bundle: Path, tmp_path: Path, capsys: Captured, name: str) -> None:
    flip_byte(copied_bundle / name, 100)
    assert f"{name} is not what was exported" in refusal(
        "export-triton", copied_bundle, tmp_path / "models", capsys=capsys
    )
    assert not (tmp_path / "models").exists()


def text_bundle(bundle: Path, out: Path) -> Path:
    """The golden bundle without its images."""
    import dataclasses

    manifest = Manifest.read(bundle)
    kept = [file for file in manifest.files if not file.name.startswith("vision")]
    out.mkdir()
    for file in kept:
        shutil.copyfile(bundle / file.name, out / file.name)
    changed = dataclasses.replace(
        manifest, image=None, graphs={"text": manifest.graphs["text"]}, files=tuple(kept), measured=()
    )
    (out / "manifest.json").write_text(changed.to_json(), encoding="utf-8")
    return out


def test_a_bundle_of_texts_alone_gives_one_model(bundle: Path, tmp_path: Path) -> None:
    export_triton(text_bundle(bundle, tmp_path / "texts"), tmp_path / "models")
    written = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert written == ["README.md", "manifest.json", "text_model", "tokenizer.json"]
    text = (tmp_path / "models/README.md").read_text(encoding="utf-8")
    assert "A model for Triton" in text and "Texts: put" in text and "Images: decode" not in text
    assert not re.search(r"\$[a-z_]|<!--", text)


def test_images_of_any_size_are_refused_with_the_reason(tmp_path: Path, capsys: Captured) -> None:
    """And not for their adapters, or a user would merge one in vain."""
    folder = make_page_bundle(tmp_path / "pages")
    message = refusal("export-triton", folder, tmp_path / "models", capsys=capsys)
    assert "images of any size" in message and "`edgeclip serve`" in message and "merge" not in message
    assert not (tmp_path / "models").exists()


def test_adapters_must_be_merged_first(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = make_text_bundle(bundle, tmp_path / "adapters")
    message = refusal("export-triton", folder, tmp_path / "models", capsys=capsys)
    assert "edgeclip export CHECKPOINT OUT --task T" in message and "retrieval.query" in message
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("threads", [-1, 1025, True, 1.0])
def test_bad_threads_are_refused(bundle: Path, tmp_path: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="threads is"):
        export_triton(bundle, tmp_path / "models", threads=threads)


@NEEDS_SHELL
def test_a_full_disk_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    """Or a limit on the size of files: what is copied does not fit."""
    done = run_shell('ulimit -f 4; "$1" -m edgeclip export-triton "$2" "$3"', bundle, tmp_path / "models")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"edgeclip: {tmp_path / 'models'}: cannot be written (File too large)\n"
    assert list(tmp_path.iterdir()) == []
