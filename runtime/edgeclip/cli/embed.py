"""`edgeclip embed`: texts and images to vectors.

Inputs are encoded a block at a time and their vectors written as they come, so memory grows with the
texts alone. A file appears under its name when it is complete.
"""

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.encoder import Encoder
from edgeclip.errors import InputError, TruncationWarning
from edgeclip.image_folder import list_images
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.staging import stage_name
from edgeclip.truncation import CutTexts, counting_cut_texts

_BLOCK = 256

# Takes the kind ("text" or "image"), the inputs and their vectors (N, dim).
Write = Callable[[str, Sequence[str], NDArray[np.float32]], None]


def run(options: argparse.Namespace) -> None:
    """Encode everything that was named: texts first, then images, each in the order given."""
    texts = [*options.text, *(_read_lines(options.texts) if options.texts else ())]
    images = [*options.image, *(_list_images(options.images) if options.images else ())]
    if not texts and not images and not (options.texts or options.images):
        options.usage_error("nothing to embed: give --text, --texts, --image or --images")
    if options.out:
        _check_out(options.out)
    with Encoder.open(options.bundle, device=options.device, threads=options.threads) as encoder:
        dim = _encode_texts(encoder, [], options).shape[1]  # a wrong option is said before anything is written
        total = len(texts) + len(images)
        with (
            _writer(options.out, total, dim) as write,
            ProgressBar("embedding", total, is_shown=is_wanted(None)) as bar,
            _one_truncation_warning(len(texts), options.max_length or encoder.manifest.tokenizer.max_length),
        ):
            for start in range(0, len(texts), _BLOCK):
                block = texts[start : start + _BLOCK]
                write("text", block, _encode_texts(encoder, block, options))
                bar.advance(len(block))
            found = encoder.iter_images(images, truncate_dim=options.truncate_dim, batch_size=options.batch_size)
            with contextlib.closing(found):
                for batch, vectors in found:
                    write("image", [images[index] for index in batch], vectors)
                    bar.advance(len(batch))
        if options.out:
            print(
                f"{options.out}: {len(texts)} texts, {len(images)} images, {dim} dimensions, on {encoder.device}",
                file=sys.stderr,
            )


def _encode_texts(encoder: Encoder, texts: Sequence[str], options: argparse.Namespace) -> NDArray[np.float32]:
    return encoder.encode_text(
        texts,
        task=options.task,
        truncate_dim=options.truncate_dim,
        max_length=options.max_length,
        batch_size=options.batch_size,
        progress=False,
    )


@contextlib.contextmanager
def _one_truncation_warning(total: int, limit: int) -> Iterator[None]:
    """One warning for all blocks instead of one each, said also when a later input fails."""
    cut = CutTexts()
    try:
        with counting_cut_texts() as cut:
            yield
    finally:
        if cut.count:
            told = TruncationWarning(f"{cut.count} of {total} texts were cut to {limit} tokens", cut=cut.count)
            warnings.warn(told, stacklevel=2)


def _read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file; a blank line is a text too."""
    try:
        lines = _read_bytes(path).decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    if lines[-1] == "":  # after the last newline there is no line
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _read_bytes(path: Path) -> bytes:
    if str(path) != "-":
        return path.read_bytes()
    if sys.stdin is None:
        raise InputError("--texts -: stdin is closed")
    return sys.stdin.buffer.read()


def _list_images(folder: Path) -> list[str]:
    found = list_images(folder)
    if not found:
        raise InputError(f"{folder}: holds no image ({'; '.join(found.notes()) or 'it is empty'})")
    for note in found.notes("; --recursive does"):
        print(f"edgeclip: {folder}: {note}", file=sys.stderr)
    return list(found)


def _check_out(out: Path) -> None:
    if out.suffix not in (".npy", ".jsonl"):
        raise InputError(f"--out {out}: wanted a name ending in .npy or .jsonl")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder")


@contextlib.contextmanager
def _writer(out: Path | None, total: int, dim: int) -> Iterator[Write]:
    if out is None:
        yield _write_json_lines
        return
    stage = out.with_name(stage_name(out.name))
    try:
        with stage.open("xb") as file:
            if out.suffix == ".npy":
                layout = {"descr": "<f4", "fortran_order": False, "shape": (total, dim)}
                np.lib.format.write_array_header_1_0(file, layout)
                yield lambda kind, inputs, vectors: file.writelines([vectors.astype("<f4").tobytes()])
            else:
                # Of a file name that is not UTF-8 the escape that JSON has for it.
                yield lambda kind, inputs, vectors: file.writelines(
                    line.encode(errors="backslashreplace") for line in _json_lines(kind, inputs, vectors)
                )
        stage.replace(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            stage.unlink(missing_ok=True)


def _write_json_lines(kind: str, inputs: Sequence[str], vectors: NDArray[np.float32]) -> None:
    sys.stdout.writelines(_json_lines(kind, inputs, vectors))


def _json_lines(kind: str, inputs: Sequence[str], vectors: NDArray[np.float32]) -> Iterator[str]:
    for name, vector in zip(inputs, vectors, strict=True):
        # The shortest decimals that give the same float32 back.
        numbers = ", ".join(map(str, vector))
        yield f'{{"{kind}": {json.dumps(name, ensure_ascii=False)}, "embedding": [{numbers}]}}\n'
