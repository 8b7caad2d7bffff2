"""`edgeclip embed`: texts and images to vectors.

Inputs are encoded a block at a time and written as they come, so memory does not grow with their
number. A file appears under its name when it is complete.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.encoder import Encoder
from edgeclip.errors import InputError
from edgeclip.progress import ProgressBar, is_wanted

# What --images takes from a folder; --image takes anything.
IMAGE_SUFFIXES = frozenset((".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))

_BLOCK = 256

# Takes the kind ("text" or "image"), the inputs and their vectors (N, dim).
Write = Callable[[str, Sequence[str], NDArray[np.float32]], None]


def run(options: argparse.Namespace) -> None:
    """Encode everything that was named: texts first, then images, each in the order given."""
    texts = [*options.text, *(_read_lines(options.texts) if options.texts else ())]
    images = [*options.image, *(_list_images(options.images) if options.images else ())]
    if not texts and not images and not (options.texts or options.images):
        raise InputError("nothing to embed: give --text, --texts, --image or --images")
    if options.out and options.out.suffix not in (".npy", ".jsonl"):
        raise InputError(f"--out {options.out}: wanted a name ending in .npy or .jsonl")
    with Encoder.open(options.bundle, device=options.device, threads=options.threads) as encoder:
        dim = options.truncate_dim or encoder.manifest.embedding_dim
        total = len(texts) + len(images)
        with (
            _writer(options.out, total, dim) as write,
            ProgressBar("embedding", total, is_shown=is_wanted(None)) as bar,
        ):
            for start in range(0, len(texts), _BLOCK):
                block = texts[start : start + _BLOCK]
                vectors = encoder.encode_text(
                    block,
                    task=options.task,
                    truncate_dim=options.truncate_dim,
                    max_length=options.max_length,
                    batch_size=options.batch_size,
                    progress=False,
                )
                write("text", block, vectors)
                bar.advance(len(block))
            size = options.batch_size or 1
            for start in range(0, len(images), size):
                block = images[start : start + size]
                vectors = encoder.encode_image(
                    block, truncate_dim=options.truncate_dim, batch_size=options.batch_size, progress=False
                )
                write("image", block, vectors)
                bar.advance(len(block))
        if options.out:
            print(
                f"{options.out}: {len(texts)} texts, {len(images)} images, {dim} dimensions, on {encoder.device}",
                file=sys.stderr,
            )


def _read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file; a blank line is a text too."""
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    if lines[-1] == "":  # after the last newline there is no line
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _list_images(folder: Path) -> list[str]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error
    if not paths:
        raise InputError(f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [str(path) for path in paths]


@contextlib.contextmanager
def _writer(out: Path | None, total: int, dim: int) -> Iterator[Write]:
    if out is None:
        yield _write_json_lines
        return
    stage = out.with_name(f"{out.name}.tmp")
    try:
        if out.suffix == ".npy":
            array = np.lib.format.open_memmap(stage, mode="w+", dtype=np.float32, shape=(total, dim))
            filled = 0

            def write(kind: str, inputs: Sequence[str], vectors: NDArray[np.float32]) -> None:
                nonlocal filled
                array[filled : filled + len(inputs)] = vectors
                filled += len(inputs)

            yield write
            array.flush()
        else:
            with stage.open("w", encoding="utf-8") as file:
                yield lambda kind, inputs, vectors: file.writelines(_json_lines(kind, inputs, vectors))
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
