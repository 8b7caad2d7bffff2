"""What a folder or a file is that is no checkpoint, and what to do with it: in words, from the names and first bytes.

People point at what they have: a clone without its large files, a link whose target was removed, the folder above or
below, another format of the same weights. Each has its own remedy, so each is called by its name.
"""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from edgeclip.errors import BuildError
from edgeclip.manifest import describe_pointer
from edgeclip_export.checkpoint import list_names
from edgeclip_export.families.family import Forms

_HEAD_BYTES = 200
_NO_EXPORT = "edgeclip exports from safetensors weights"
# Weights in another form, by the names of files; the first that matches is said.
_OTHER_WEIGHTS = tuple(
    (re.compile(pattern, re.IGNORECASE), what)
    for pattern, what in (
        (
            r"adapter_(model\.\w+|config\.json)",
            "an adapter without its model; merge it (peft's merge_and_unload) and save the whole model",
        ),
        (r".*\.(gguf|ggml)", f"weights for llama.cpp; {_NO_EXPORT}, take the repository that they were made from"),
        (r"(.*/)?openvino_model.*\.xml", f"a model for OpenVINO; {_NO_EXPORT}, take the repository it was made from"),
        (r"(.*/)?zero_to_fp32\.py", "a checkpoint of DeepSpeed; run it with --safe_serialization to join the parts"),
        (r"(.*/)?[^/]*\.distcp", "parts of torch.distributed; join them and save the model as safetensors"),
        (r".*\.safetensors\.(incomplete|part|crdownload|aria2|tmp)", "a download that did not end; fetch it again"),
        (r".*\.safetensors\.dvc", "only DVC's note of the file; run `dvc pull`"),
        (
            r".*-\d+-of-\d+\.safetensors",
            "a shard, and no model.safetensors.index.json says what lies where; fetch the index too",
        ),
        (r"[^/]*\.safetensors", "weights are read from model.safetensors; rename it if it is the whole model"),
        (
            r"[^/]*\.(bin|pt|pth|ckpt|pkl)",
            "pickle files can run code and are not read; load it with torch.load(weights_only=True) and write "
            "model.safetensors with safetensors.torch.save_file",
        ),
        (r"(.*/)?[^/]*\.onnx", f"an ONNX graph; {_NO_EXPORT}, take the repository it was made from"),
        (r".*\.(h5|msgpack|tflite|mlmodel|npz)", f"another framework's weights; {_NO_EXPORT}"),
    )
)
_OTHER_TOKENIZERS = {
    "sentencepiece.bpe.model": "make tokenizer.json of sentencepiece.bpe.model with "
    "transformers.XLMRobertaTokenizerFast.from_pretrained(FOLDER).save_pretrained(FOLDER), or copy it from the base "
    "model",
    "vocab.txt": "vocab.txt is the vocabulary of a BERT model; make tokenizer.json of it with "
    "transformers.BertTokenizerFast.from_pretrained(FOLDER).save_pretrained(FOLDER), or copy it from the base model",
}
_WEB_PAGE = rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)"  # a safetensors file may begin with < too


def recognise(names: Collection[str], models: str) -> str | None:
    """What a folder with these files is instead of a checkpoint of one of the `models`; None if it may be one."""
    if "manifest.json" in names and any(name.endswith(".onnx") for name in names):
        return "is a bundle already, there is nothing to export; `edgeclip inspect` shows what it holds"
    if commits := sorted({name.split("/")[1] for name in names if re.match(r"snapshots/[^/]+/", name)}):
        return f"is the Hub's cache of a repository; pass the folder of a commit in it, snapshots/{commits[0]}"
    if "model_index.json" in names:
        return f"is a pipeline of diffusers; edgeclip exports {models}"
    return None


def describe_absence(missing: Sequence[Forms], names: Collection[str]) -> str:
    """What a folder with these files lacks and what to do about the first of it."""
    lacks = ", ".join(forms[0] for forms in missing)
    wanted = {forms[0] for forms in missing}
    advice = []
    if "model.safetensors" in wanted and (found := _describe_other_weights(names)):
        advice.append(found)
    if "tokenizer.json" in wanted:
        advice += [advised for name, advised in _OTHER_TOKENIZERS.items() if name in names]
    if not advice and not wanted & {"config.json", "model.safetensors"}:  # as a trainer's checkpoint
        advice.append(f"copy {'it' if len(wanted) == 1 else 'them'} from the base model")
    return f"not a checkpoint, it has no {lacks}{''.join(f'; {one}' for one in advice)}"


def check_content(path: Path) -> None:
    """BuildError for a link to nothing, a file that cannot be read, is empty or only points at another."""
    if path.is_symlink() and not path.exists():
        target = os.readlink(path)
        raise BuildError(f"{path}: a link to {target}, which is not there; {_advise_on_link(target)}")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise BuildError(f"{path}: cannot be read ({error.strerror}); give this user the right to") from error
    if not head:
        raise BuildError(f"{path}: is empty; fetch or copy it again")
    if what := describe_pointer(head):
        raise BuildError(f"{path}: {what}")
    if re.match(_WEB_PAGE, head):
        raise BuildError(
            f"{path}: a web page instead of the file; fetch it again, from /resolve/ instead of /blob/ if by hand"
        )


def _describe_other_weights(names: Collection[str]) -> str | None:
    for pattern, what in _OTHER_WEIGHTS:
        if found := [name for name in names if pattern.fullmatch(name)]:
            return f"{list_names(found)}: {what}"
    return None


def _advise_on_link(target: str) -> str:
    if ".git/annex/" in target:
        return "run `git annex get .`"
    if "blobs/" in target:
        return "the Hub's cache lost it, fetch the model again; to copy a cache, follow links (`cp -rL`)"
    return "bring it back, or copy the folder with links followed (`cp -rL`)"
