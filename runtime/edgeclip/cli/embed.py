"""`edgeclip embed`: texts and images to vectors.

Inputs are encoded a block at a time and their vectors written as they come, so memory grows with the texts and with
the names of the images. What a finished file, an interrupted one and its rows look like is `vector_file`'s.
"""

import argparse
import contextlib
import hashlib
import re
import sys
import warnings
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from edgeclip.cli.arguments import add_bundle, add_device, add_folder
from edgeclip.cli.vector_file import Done, Encoded, VectorFile, json_lines, skipped_line
from edgeclip.encoder import Encoder
from edgeclip.errors import InputError, TruncationWarning
from edgeclip.inputs.checks import check_truncate_dim
from edgeclip.inputs.image_stream import OnError, SkippedImage
from edgeclip.inputs.images import shown_path
from edgeclip.inputs.picture_folder import list_pictures
from edgeclip.inputs.truncation import counting_cut_texts
from edgeclip.progress import ProgressBar, is_wanted

# Encoded together, and lost together when a run is killed.
_BLOCK, _BLOCK_CHARACTERS = 256, 1 << 18
_NAMED = 20
_OUT_HELP = ".npy, .npz for --multivector, or .jsonl; default: JSON lines on stdout"


class _Images(Sequence[str]):
    """The images that were named and those of a folder, without the first `start`."""

    def __init__(self, named: Sequence[str], folder: Sequence[str], start: int = 0) -> None:
        self._parts, self._start = (named, folder), start

    def __len__(self) -> int:
        return sum(map(len, self._parts)) - self._start

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        (named, folder), place = self._parts, self._start + index
        return named[place] if place < len(named) else folder[place - len(named)]

    def after(self, start: int) -> "_Images":
        """The same without the first `start`."""
        return _Images(*self._parts, start)


class _Stdout:
    """What `VectorFile` does with a file, done with stdout: a line for each input, as it comes."""

    def __init__(self, *, is_multi: bool) -> None:
        self.done, self._is_multi = Done(), is_multi

    def write(self, kind: str, names: Sequence[str], vectors: Encoded, cut: Collection[int] = ()) -> None:
        """A line for each input."""
        sys.stdout.writelines(json_lines(kind, names, vectors))
        self.done.cut += len(cut)

    def skip(self, kind: str, name: str, reason: str) -> None:
        """A line that says why there is no vector."""
        sys.stdout.write(skipped_line(kind, name, reason, is_multi=self._is_multi).decode())
        self.done.skipped += 1

    def checkpoint(self, *, is_last: bool = False) -> None:
        """Nothing is gone on with."""

    def finish(self) -> None:
        """Nothing is left to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    add_bundle(parser)
    parser.add_argument("--text", action="append", default=[], metavar="T", help="a text; may be repeated")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="a UTF-8 file, one text a line; - is stdin")
    parser.add_argument("--image", action="append", default=[], metavar="F", help="an image; may be repeated")
    parser.add_argument("--images", type=Path, metavar="DIR", help="every image in a folder, sorted by name")
    add_folder(parser)
    parser.add_argument(
        "--task", metavar="T", help="a task that the model has (edgeclip inspect): its prompt, its adapter"
    )
    parser.add_argument(
        "--multivector", action="store_true", help="a vector for each token, where the model has them"
    )
    parser.add_argument("--max-pixels", type=int, metavar="N", help="scale larger images down to N pixels")
    parser.add_argument("--truncate-dim", type=int, metavar="N", help="keep the first N dimensions")
    parser.add_argument("--max-length", type=int, metavar="N", help="cut texts at N tokens")
    parser.add_argument("--batch-size", type=int, metavar="N", help="at most N inputs at once")
    parser.add_argument("--out", type=Path, metavar="FILE", help=_OUT_HELP)
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Encode everything that was named: texts first, then images, each in the order given. 1 if some were skipped."""
    if options.resume and not options.out:
        options.usage_error("--resume is for a file: give --out")
    if options.recursive and not options.images:
        options.usage_error("--recursive is for a folder: give --images")
    if not (options.text or options.image or options.texts or options.images):
        options.usage_error("nothing to embed: give --text, --texts, --image or --images")
    if options.multivector and options.truncate_dim is not None:
        options.usage_error("--truncate-dim is for single vectors: leave it out, or --multivector")
    if options.out:
        _check_out(options.out, "npz" if options.multivector else "npy")
    texts = [*options.text, *(_read_lines(options.texts) if options.texts else ())]
    folder: Sequence[str] = ()
    unreadable = 0
    if options.images:
        folder = list_pictures(options.images, is_recursive=options.recursive, skips_broken=options.skip_broken)
        unreadable = folder.unreadable.count
    images = _Images(options.image, folder)
    with Encoder.open(options.bundle, device=options.device, threads=options.threads) as encoder:
        dim = _check_options(encoder, bool(texts), bool(images), options)  # before anything is written
        total = len(texts) + len(images)
        limit = options.max_length or (encoder.manifest.text.max_length if encoder.manifest.text else 0)
        with contextlib.ExitStack() as stack:
            output: VectorFile | _Stdout = _Stdout(is_multi=options.multivector)
            if options.out:
                job = _describe_job(options, encoder, texts, dim)
                file = VectorFile(
                    options.out, job, images, total, dim, is_resumed=options.resume, is_multi=options.multivector
                )
                output = stack.enter_context(file)
            bar = stack.enter_context(ProgressBar("embedding", total, is_shown=is_wanted(None)))
            try:
                bar.advance(output.done.inputs)
                _write_texts(encoder, texts, options, output, bar)
                _write_images(encoder, images, options, output, bar)
                output.finish()
            except BaseException:
                if output.done.cut:
                    print(
                        f"edgeclip: {output.done.cut} of {len(texts)} texts were cut to {limit} tokens",
                        file=sys.stderr,
                    )
                raise
    done = output.done
    if options.out:
        skipped = f", {done.skipped} skipped" if done.skipped else ""
        print(
            f"{options.out}: {len(texts)} texts, {len(images) - done.skipped} images, {dim} dimensions, "
            f"on {encoder.device}{skipped}",
            file=sys.stderr,
        )
    if done.skipped > _NAMED:
        print(f"edgeclip: {done.skipped} images were skipped; the output says which, and why", file=sys.stderr)
    if done.cut:  # comes last: where warnings are errors, it ends the run
        told = f"{done.cut} of {len(texts)} texts were cut to {limit} tokens"
        warnings.warn(TruncationWarning(told, cut=done.cut), stacklevel=2)
    return 1 if done.skipped or unreadable else 0


def _write_texts(
    encoder: Encoder,
    texts: Sequence[str],
    options: argparse.Namespace,
    output: VectorFile | _Stdout,
    bar: ProgressBar,
) -> None:
    for block in _blocks(texts, output.done.texts):
        with counting_cut_texts() as counted:
            vectors = _encode_texts(encoder, block, options)
        cut: Collection[int] = ()
        if counted.count:  # which of them, their number does not say
            cut = set(encoder.prepare_texts(block, task=options.task, max_length=options.max_length).cut)
        output.write("text", block, vectors, cut)
        # Images come next, and one may take long, or wait in a pipe.
        output.checkpoint(is_last=output.done.texts == len(texts))
        bar.advance(len(block))


def _check_options(encoder: Encoder, has_texts: bool, has_images: bool, options: argparse.Namespace) -> int:
    """The dimension of the vectors; InputError for options and inputs that the model does not take."""
    manifest = encoder.manifest
    if has_images:
        manifest.check_modality("image")
    is_for_texts_alone = manifest.task_required and not manifest.tasks_of("image") and options.task is None
    if has_texts or (manifest.text and not is_for_texts_alone):
        _encode_texts(encoder, [], options)
    if options.multivector:
        return manifest.need_multi().dim
    return check_truncate_dim(options.truncate_dim, manifest)


def _image_task(encoder: Encoder, task: str | None) -> str | None:
    """The task for images: none where it is one of texts alone."""
    return task if task in encoder.manifest.tasks_of("image") else None


def _write_images(
    encoder: Encoder, images: _Images, options: argparse.Namespace, output: VectorFile | _Stdout, bar: ProgressBar
) -> None:
    start = output.done.images
    rest = images.after(start)
    if not rest:
        return
    skipped: list[SkippedImage] = []

    def skip(image: SkippedImage) -> None:
        skipped.append(image)
        if output.done.skipped + len(skipped) <= _NAMED:
            path = shown_path(rest[image.index])
            print(f"edgeclip: skipped image {start + image.index} ({path}): {image.reason}", file=sys.stderr)

    def write_skipped(before: int) -> None:
        while skipped and skipped[0].index < before:
            image = skipped.pop(0)
            output.skip("image", rest[image.index], image.reason)
            bar.advance()

    found = _iter_images(encoder, rest, options, skip if options.skip_broken else "raise")
    try:
        with contextlib.closing(found):
            for indices, vectors in found:
                for row, index in enumerate(indices):
                    write_skipped(index)
                    output.write("image", [rest[index]], vectors[row : row + 1])
                write_skipped(len(rest))  # of the same batch, after its last image that could be read
                output.checkpoint()
                bar.advance(len(indices))
            write_skipped(len(rest))
    except (InputError, MemoryError) as error:  # the encoder counts from where this run began
        told = re.sub(r"^image (\d+)", lambda match: f"image {start + int(match[1])}", str(error))
        raise type(error)(told) from error


def _blocks(texts: Sequence[str], start: int) -> Iterator[Sequence[str]]:
    """The texts from `start` on in blocks; where a block ends does not depend on where the first began."""
    while start < len(texts):
        stop, characters = start + 1, len(texts[start])
        while stop < min(len(texts), start + _BLOCK) and characters + len(texts[stop]) <= _BLOCK_CHARACTERS:
            characters += len(texts[stop])
            stop += 1
        yield texts[start:stop]
        start = stop


def _encode_texts(encoder: Encoder, texts: Sequence[str], options: argparse.Namespace) -> Encoded:
    shared: dict[str, Any] = {name: getattr(options, name) for name in ("task", "max_length", "batch_size")}
    if options.multivector:
        return encoder.encode_text_multivector(texts, **shared, progress=False)
    return encoder.encode_text(texts, **shared, truncate_dim=options.truncate_dim, progress=False)


def _iter_images(
    encoder: Encoder, images: Sequence[str], options: argparse.Namespace, on_error: OnError
) -> Generator[tuple[Sequence[int], Encoded]]:
    shared: dict[str, Any] = {name: getattr(options, name) for name in ("max_pixels", "batch_size")}
    shared |= {"task": _image_task(encoder, options.task), "on_error": on_error}
    if options.multivector:
        return encoder.iter_images_multivector(images, **shared)
    return encoder.iter_images(images, **shared, truncate_dim=options.truncate_dim)


def _describe_job(options: argparse.Namespace, encoder: Encoder, texts: Sequence[str], dim: int) -> dict[str, Any]:
    """What the vectors depend on besides the images, by the names that a message has for it."""
    from edgeclip.engine.vector_facts import vector_facts  # reads the package's files

    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)} {text}".encode(errors="surrogatepass"))
    return {
        **vector_facts(encoder, encoder.manifest.graphs),
        "--task": options.task,
        "--multivector": options.multivector,
        "--max-pixels": options.max_pixels,
        "--truncate-dim": dim,
        "--max-length": options.max_length,
        "--batch-size": options.batch_size,
        "the number of texts": len(texts),
        "the hash of the texts": digest.hexdigest(),
    }


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


def _check_out(out: Path, kind: str) -> None:
    """InputError for a name that ends in neither .jsonl nor the kind of numpy's files that is written."""
    if out.suffix not in (f".{kind}", ".jsonl"):
        raise InputError(f"--out {out}: wanted a name ending in .{kind} or .jsonl")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder")
