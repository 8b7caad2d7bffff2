"""What is no checkpoint is called by its name, in one line with what to do: other models, formats, lost files."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import try_to_load_from_cache

from edgeclip import BuildError
from edgeclip_export import export_checkpoint
from edgeclip_export.opening import open_checkpoint
from tests.conftest import CHECKPOINT, FILES
from tests.scenes.permissions import bound_by_permissions

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 1730688642\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKPOINT, tmp_path / "model")


def refusal(folder: Path) -> str:
    """The line that an export gives; nothing is left beside the folder."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(BuildError) as caught:
        export_checkpoint(folder, folder.parent / "out")
    assert "\n" not in str(caught.value) and "pip install" not in str(caught.value)
    assert sorted(folder.parent.iterdir()) == before
    return str(caught.value)


def test_the_official_layout_is_opened() -> None:
    assert open_checkpoint(CHECKPOINT).checkpoint.weights == (CHECKPOINT / "model.safetensors",)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["BertModel"], "model_type": "bert"}, "is a BertModel (model_type is 'bert'); edgeclip"),
        ({"architectures": ["CLIPModel"], "model_type": "clip"}, "is a CLIPModel (model_type is 'clip')"),
        ({"model_type": "jina_embeddings_v5"}, "is a jina_embeddings_v5 (model_type"),
        (
            {
                "architectures": ["XLMRobertaModel"],
                "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_xlm.XLMRobertaModel"},
            },
            "is a XLMRobertaModel (its code is jinaai/xlm-roberta-flash-implementation)",
        ),
        ({"architectures": ["ColPali"]}, "is a ColPali; edgeclip exports jina-clip-v2, "),
        ({"architectures": [], "model_type": 7}, "config.json names no model_type and no architecture; edgeclip"),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_another_model_is_named_by_its_architecture(folder: Path, config: dict[str, object], said: str) -> None:
    """Before its missing files are: the weights are the only other file here."""
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "tokenizer.json"):
        (folder / name).unlink()
    assert f"{folder}: {said}" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "pytorch_model.bin",
            "pytorch_model.bin: pickle files can run code and are not read; load it with torch.load",
        ),
        ("model.ckpt", "model.ckpt: pickle files can run code"),
        ("model.fp16.safetensors", "model.fp16.safetensors: weights are read from model.safetensors; rename it"),
        ("model-00001-of-00002.safetensors", "a shard, and no model.safetensors.index.json says what lies where"),
        ("onnx/model.onnx", "onnx/model.onnx: an ONNX graph"),
        ("jina-clip-v2-q8_0.gguf", "jina-clip-v2-q8_0.gguf: weights for llama.cpp"),
        ("m.Q4_K_M.GGUF", "m.Q4_K_M.GGUF: weights for llama.cpp"),
        ("MODEL.CKPT", "MODEL.CKPT: pickle files can run code"),
        ("OpenVINO/OpenVINO_Model.XML", "a model for OpenVINO"),
        ("openvino/openvino_model.xml", "a model for OpenVINO"),
        ("adapter_model.safetensors", "adapter_model.safetensors: an adapter without its model; merge it"),
        ("tf_model.h5", "tf_model.h5: another framework's weights"),
        ("zero_to_fp32.py", "a checkpoint of DeepSpeed; run it"),
        ("__0_0.distcp", "__0_0.distcp: parts of torch.distributed; join them"),
        ("model.safetensors.dvc", "run `dvc pull`"),
        ("model.safetensors.part", "a download that did not end"),
    ],
)
def test_weights_in_another_form_are_named(folder: Path, name: str, said: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"weights")
    told = refusal(folder)
    assert f"{folder}: not a checkpoint, it has no model.safetensors; " in told and said in told


def test_a_folder_without_anything_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").endswith("it has no config.json, model.safetensors, tokenizer.json")
    with pytest.raises(BuildError, match="no such checkpoint folder"):
        open_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "a file, wanted the folder of a checkpoint"),
        (
            "model.gguf",
            "a file, wanted the folder of a checkpoint; not a checkpoint, it has no model.safetensors; model.",
        ),
    ],
)
def test_a_file_instead_of_a_folder_is_said(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    assert f"{tmp_path / name}: {said}" in refusal(tmp_path / name)


def test_a_bundle_is_exported_already(copied_bundle: Path) -> None:
    assert "is a bundle already" in refusal(copied_bundle)


@pytest.mark.parametrize("inner", ["0_Transformer", "checkpoint-500"])
def test_the_folder_above_says_where_the_checkpoint_lies(tmp_path: Path, inner: str) -> None:
    """As sentence-transformers saves it, beside modules.json, and as trainers do."""
    shutil.copytree(CHECKPOINT, tmp_path / "run" / inner)
    shutil.copytree(CHECKPOINT, tmp_path / "run" / "bert")
    (tmp_path / "run" / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "run" / "modules.json").write_text("[]")
    assert f"has no config.json, but {inner} has; pass such a folder" in refusal(tmp_path / "run")


def test_the_hubs_cache_says_which_folder_is_meant(tmp_path: Path) -> None:
    """A cache as huggingface_hub reads it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--someone--clip"
    shutil.copytree(CHECKPOINT, root / "snapshots" / commit)
    found = try_to_load_from_cache("someone/clip", "config.json", cache_dir=tmp_path, revision=commit)
    assert found == str(root / "snapshots" / commit / "config.json")
    assert f"pass the folder of a commit in it, snapshots/{commit}" in refusal(root)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("../../blobs/4d7a21", "the Hub's cache lost it, fetch the model again"),
        (".git/annex/objects/aa/bb/SHA256E-s17/x", "run `git annex get .`"),
        ("/mnt/gone/x", "bring it back, or copy the folder with links followed"),
    ],
)
def test_a_link_to_nothing_is_called_one(folder: Path, name: str, target: str, advice: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    assert f"{folder / name}: a link to {target}, which is not there; {advice}" in refusal(folder)


def test_links_to_something_are_followed(tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for name in FILES:
        (tmp_path / "linked" / name).symlink_to(CHECKPOINT / name)
    assert open_checkpoint(tmp_path / "linked").checkpoint.weights[0].is_symlink()
    (tmp_path / "whole").symlink_to(CHECKPOINT)
    assert open_checkpoint(tmp_path / "whole").checkpoint.folder == tmp_path / "whole"


def test_a_folder_that_is_a_link_to_nothing_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its name could be a Hub id: nobody is asked for it."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "clip").symlink_to("/mnt/gone")
    monkeypatch.chdir(tmp_path)
    assert refusal(Path("models/clip")) == "models/clip: a link to /mnt/gone, which is not there"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LFS, "a pointer of Git LFS; fetch the file with `git lfs pull`"),
        (
            b"/annex/objects/SHA256E-s1730688642--4d7a21.safetensors\n",
            "a pointer of git-annex; fetch the file with `git annex get`",
        ),
        (b"<!doctype html><html>", "a web page instead of the file; fetch it again"),
        (b"\xef\xbb\xbf\n<HTML>", "a web page instead of the file; fetch it again"),
        (b"", "is empty; fetch or copy it again"),
    ],
)
def test_a_file_that_stands_for_another_is_named(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / name).write_bytes(content)
    assert f"{folder / name}: {said}" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sentencepiece.bpe.model", "make tokenizer.json of sentencepiece.bpe.model with transformers."),
        ("vocab.txt", "vocab.txt is the vocabulary of a BERT model; make tokenizer.json of it"),
    ],
)
def test_another_tokenizer_says_what_to_do(folder: Path, name: str, said: str) -> None:
    (folder / "tokenizer.json").rename(folder / name)
    assert f"it has no tokenizer.json; {said}" in refusal(folder)


def test_what_a_trainer_does_not_save_is_to_be_copied(folder: Path) -> None:
    """It keeps weights and configuration alone, for a while."""
    (folder / "preprocessor_config.json").unlink()
    assert refusal(folder).endswith("it has no preprocessor_config.json; copy it from the base model")
    (folder / "tokenizer.json").unlink()
    assert refusal(folder).endswith("no tokenizer.json, preprocessor_config.json; copy them from the base model")


@bound_by_permissions
def test_a_file_that_may_not_be_read_is_said(folder: Path) -> None:
    (folder / "config.json").chmod(0)
    assert "cannot be read (Permission denied); give this user the right to" in refusal(folder)
