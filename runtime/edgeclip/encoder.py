"""The whole way of a text and of an image, from what a user has to a unit vector.

    text  -> instruction prefix -> token ids -> batches of one length -> text graph   -> cut, normalise
    image -> RGB -> resize, crop -> uint8 pixels -> batches           -> vision graph -> cut, normalise

Pooling, LoRA, mean and std, and the first normalisation are inside the graphs (`edgeclip_export`).
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgeclip.batch_policy import BatchPolicy
from edgeclip.bundle import open_manifest, verify_hash
from edgeclip.devices import Device, choose_device, usable_cpus
from edgeclip.errors import BundleError, DeviceError, InputError, TruncationWarning, UnprovedWarning
from edgeclip.images import ImageInput, is_image
from edgeclip.jina_clip import preprocess_image, prompt
from edgeclip.manifest import TOWERS, Manifest, TowerName
from edgeclip.pipeline import stage_images
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.providers import Plan
from edgeclip.selftest import run_selftest
from edgeclip.session import TowerSession, import_onnxruntime, plan_tower
from edgeclip.tokenization import TextTokenizer, TokenizedTexts, check_max_length

Vectors = NDArray[np.float32]

_MOST_THREADS = 1024
# Loading a tower holds Python's lock for a few milliseconds at its beginning, parsing 250,000 pieces for 200 on end:
# without this start the tower would wait for the pieces, with it the two go on side by side.
_HEAD_START_S = 0.02


class Encoder:
    """A bundle, opened on a device. `Encoder.open` makes one; it is a context manager.

    On the CPU a tower is loaded when it is first used, and the tokenizer with the first text, so whoever only
    searches never pays for the vision tower. Any number of threads may call one Encoder, and one may close it while
    others encode: those finish, or are told that it is closed.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: Device, threads: int) -> None:
        self.manifest = manifest
        self._folder, self._device, self._threads = folder, device, threads
        self._policy = BatchPolicy.choose(device.kind, manifest, "throughput")
        verify_hash(folder, manifest.file(manifest.tokenizer.file))  # a damaged one makes tokenizers panic
        self._parsed: TextTokenizer | None = None
        self._parsing = threading.Lock()
        self._sessions: dict[TowerName, TowerSession] = {}
        self._locks = {tower: threading.Lock() for tower in TOWERS}
        self._is_closed = False

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        selftest: bool | None = None,
    ) -> Self:
        """Open the bundle in a folder.

        `device` is "auto", "cpu", "cuda[:n]", "tensorrt[:n]" or "openvino[:CPU|GPU|NPU]"; anything but "auto" is that
        or an error. `threads=None` takes every processor the process may use (cgroup and affinity); as many threads
        decode images beside the tower's. A tower that is narrowed without a proof of what it cost is an
        UnprovedWarning.

        `selftest` encodes the bundle's self-test before anything else (`edgeclip.selftest.run_selftest`). None does
        so on every device but the CPU: drivers and compiled kernels go wrong in silence, and a GPU is quick to ask,
        while a CPU would load both towers and compute two images first, seconds for whoever wants one text.

        Raises BundleError for a folder that holds no complete bundle, DeviceError for a device that is unknown, not
        there or answers wrongly, MissingExtraError without onnxruntime, InputError for bad threads or selftest.
        """
        if selftest is not None and type(selftest) is not bool:
            raise InputError(f"selftest is {selftest!r}, wanted True, False or None")
        if threads is not None and (type(threads) is not int or not 1 <= threads <= _MOST_THREADS):
            raise InputError(f"threads is {threads!r}, wanted an int from 1 to {_MOST_THREADS}")
        folder = Path(bundle)
        manifest = open_manifest(folder)
        if unproved := _unproved(manifest):
            warnings.warn(UnprovedWarning(f"{folder}: {unproved}"), stacklevel=2)
        chosen = choose_device(device, import_onnxruntime().get_available_providers(), manifest.target)
        encoder = cls(folder, manifest, chosen, threads or usable_cpus())
        is_lazy = chosen.kind == "cpu"  # another device is proved by starting it
        try:
            for tower in () if is_lazy else TOWERS:
                encoder._session(tower)
            if not is_lazy if selftest is None else selftest:
                run_selftest(encoder, folder)
        except BaseException:
            encoder.close()
            raise
        return encoder

    @property
    def device(self) -> str:
        """What runs the towers: "cpu", "cuda:0", "tensorrt:0", "openvino:CPU"."""
        return str(self._device)

    @property
    def folder(self) -> Path:
        """The folder that the bundle was opened from."""
        return self._folder

    @property
    def threads(self) -> int:
        """The number of threads that a tower computes with on the CPU."""
        return self._threads

    def plan(self, tower: TowerName) -> Plan:
        """The providers, their options and the session entries that onnxruntime runs a tower with.

        On CUDA without the stream that graphs are captured on, which is another number in each process.
        """
        return plan_tower(tower, self._device, self._threads, self.manifest)

    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        task: str | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Vectors:
        """Unit vectors of texts: (dim,) for one str, (N, dim) float32 for several, in their order.

        `task` prepends the model's instruction of that name. `truncate_dim` keeps the first so many dimensions, then
        normalises. `max_length` is in tokens, the opening and closing one included (None: the model's limit); texts
        that were longer are cut and counted in a TruncationWarning. `batch_size` caps the texts that go to the tower
        together. `progress=None` shows a bar when stderr is a terminal.

        Raises InputError for what is no text and for an unknown option.
        """
        self._check_open()
        is_single = isinstance(texts, str)
        dim = self._dimension(truncate_dim)
        _check_batch_size(batch_size)
        limit = check_max_length(max_length, self.manifest.tokenizer)
        prompt("", task, self.manifest.tokenizer.instructions)  # before the tower begins to load
        checked = _check_texts([texts] if isinstance(texts, str) else texts)
        if checked and self._parsed is None:
            self._load_ahead("text")
        tokenized = self.tokenize(checked, task=task, max_length=limit)
        rows = tokenized.rows
        if cut := len(tokenized.cut):
            told = TruncationWarning(f"{cut} of {len(rows)} texts were cut to {limit} tokens", cut=cut)
            warnings.warn(told, stacklevel=2)
        vectors = np.empty((len(rows), dim), dtype=np.float32)
        with ProgressBar("texts", len(rows), is_shown=is_wanted(progress)) as bar:
            for batch in self._policy.plan_texts(rows, batch_size):
                vectors[list(batch.indices)] = self._run("text", batch.input_ids, dim)
                bar.advance(len(batch.indices))
        return vectors[0] if is_single else vectors

    def encode_image(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Vectors:
        """Unit vectors of images: (dim,) for one image, (N, dim) float32 for several, in their order.

        An image is a path, the bytes of a file, a "data:image/...;base64," string, a PIL image, or an
        RGB array (height, width, 3) uint8. URLs are not fetched. Options as in `encode_text`; no more than 32 images
        go to the tower together, whatever `batch_size` is.

        Raises InputError, naming the image, for one that cannot be read.
        """
        self._check_open()
        is_single = is_image(images)
        dim = self._dimension(truncate_dim)
        _check_batch_size(batch_size)
        items = _check_images([images] if is_single else images)
        if len(items) == 1:  # nothing to do meanwhile
            pixels = self.preprocess(items[0], label="image" if is_single else "image 0")
            vectors = self._run("vision", pixels[None], dim)
            return vectors[0] if is_single else vectors
        vectors = np.empty((len(items), dim), dtype=np.float32)
        with ProgressBar("images", len(items), is_shown=is_wanted(progress)) as bar:
            for batch, found in self._iter_images(items, dim, batch_size):
                vectors[batch.start : batch.stop] = found
                bar.advance(len(batch))
        return vectors

    def iter_images(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
    ) -> Generator[tuple[range, Vectors]]:
        """The vectors of images as they come: the indices of a batch and its (B, dim) float32, in order.

        For more images than their vectors should be held of. The next are decoded in threads while one batch
        computes, a few and no more; so an array must stay as it is until its vector came. Whoever stops early closes
        it (`contextlib.closing`), and no thread is left. Options and errors as in `encode_image`, the options' at
        once.
        """
        self._check_open()
        dim = self._dimension(truncate_dim)
        _check_batch_size(batch_size)
        return self._iter_images(_check_images([images] if is_image(images) else images), dim, batch_size)

    def _iter_images(
        self, images: Sequence[ImageInput], dim: int, batch_size: int | None
    ) -> Generator[tuple[range, Vectors]]:
        batches = list(self._policy.plan_images(len(images), batch_size))
        size = self.manifest.image.size_px
        staged = partial(stage_images, batches, self._preparing(images), (size, size, 3), self._threads)
        if batches and self._device.kind == "cuda":  # page-locked, and kept for the next call
            session = self._session("vision")
            staged = partial(staged, allocate=session.allocate, recycle=session.recycle)
        with contextlib.closing(staged()) as ahead:
            for batch, pixels in ahead:
                yield batch, self._run("vision", pixels, dim)

    def tokenize(
        self, texts: str | Iterable[str], *, task: str | None = None, max_length: int | None = None
    ) -> TokenizedTexts:
        """The ids that the text tower takes for each text, (T,) int64, and which texts were cut.

        The first step of `encode_text`, for whoever forms batches elsewhere; raises what it raises.
        """
        instructions = self.manifest.tokenizer.instructions
        prompt("", task, instructions)  # an unknown task is one without texts, too
        checked = _check_texts([texts] if isinstance(texts, str) else texts)
        return self._tokenizer().encode([prompt(text, task, instructions) for text in checked], max_length)

    def count_token_ids(self) -> int:
        """How many ids the text tower takes: one more than the highest that the tokenizer gives."""
        return self._tokenizer().count_ids()

    def preprocess(self, image: ImageInput, *, label: str = "image") -> NDArray[np.uint8]:
        """The pixels that the vision tower takes for an image: (size_px, size_px, 3) uint8.

        The first step of `encode_image`, for whoever forms batches elsewhere. Any number of threads may decode at
        once. Raises InputError, which calls the image `label`.
        """
        return preprocess_image(image, self.manifest.image, label=label)

    def run_tower(self, tower: TowerName, batch: NDArray[Any]) -> Vectors:
        """Unit vectors (B, dim) of inputs as the graph takes them: ids (B, T) int64, or pixels (B, S, S, 3) uint8.

        Nothing is tokenised, padded or resized. Raises DeviceError for what the graph cannot take.
        """
        return self._run(tower, batch, self.manifest.embedding_dim)

    def close(self) -> None:
        """Free the towers and the tokenizer. Closing twice is harmless; encoding afterwards is an InputError."""
        self._is_closed = True
        self._sessions.clear()
        self._parsed = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, tower: TowerName, batch: NDArray[Any], dim: int) -> Vectors:
        """Cut first, then normalise (torch.nn.functional.normalize: a length counts as >= 1e-12)."""
        vectors = self._session(tower).run(batch)
        full = self.manifest.embedding_dim
        if vectors.shape != (len(batch), full):
            raise BundleError(
                f"{self._folder}: the {tower} graph gives {vectors.shape} for {len(batch)} inputs of "
                f"{full} dimensions; export it again"
            )
        if not np.isfinite(vectors).all():
            raise DeviceError(
                f"the {tower} graph answered with NaN or infinity; it does not run right on {self.device}"
            )
        if dim == full:
            return vectors
        vectors = vectors[:, :dim]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = vectors / lengths.clip(min=1e-12).astype(np.float32)
        return unit

    def _preparing(self, items: Sequence[ImageInput]) -> Callable[[int], NDArray[np.uint8]]:
        """`preprocess` of an item by its index, for several threads at once."""
        loading = threading.Lock()

        def prepare(index: int) -> NDArray[np.uint8]:
            item = items[index]
            if hasattr(item, "load"):
                # A PIL image reads its file when first used and may stand in the list twice: Pillow loads one in one
                # thread alone. Of what fails here `preprocess` tells.
                with loading, contextlib.suppress(Exception):
                    item.load()
            return self.preprocess(item, label=f"image {index}")

        return prepare

    def _load_ahead(self, tower: TowerName) -> None:
        """Begin to load a tower in a thread of its own. What goes wrong there is raised where the tower is used."""

        def load() -> None:
            with contextlib.suppress(Exception):
                self._session(tower)

        thread = threading.Thread(target=load, name=f"edgeclip-load-{tower}")
        thread.start()
        thread.join(_HEAD_START_S)

    def _tokenizer(self) -> TextTokenizer:
        """The tokenizer, parsed by whoever comes first."""
        with self._parsing:
            self._check_open()
            if (parsed := self._parsed) is None:
                facts = self.manifest.tokenizer
                self._parsed = parsed = TextTokenizer(self._folder / facts.file, facts)
            if self._is_closed:  # meanwhile, as in `_session`
                self._parsed = None
            return parsed

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("the encoder is closed; open the bundle again")

    def _session(self, tower: TowerName) -> TowerSession:
        """The tower, loaded by whoever comes first; one tower's loading does not hold up the other's work."""
        if session := self._sessions.get(tower):
            return session
        with self._locks[tower]:
            self._check_open()
            if session := self._sessions.get(tower):
                return session
            graph = self.manifest.tower(tower).file
            verify_hash(self._folder, self.manifest.file(graph))
            session = TowerSession(self._folder / graph, tower, self._device, self._threads, self.manifest)
            if tower == "text":
                # Mapped weights (`edgeclip_export.passes.gemm`) let the first text wait for the disk; this reads all.
                facts = self.manifest.tokenizer
                session.run(np.array([[facts.bos_id, facts.eos_id]], dtype=np.int64))
            self._sessions[tower] = session
            if self._is_closed:  # meanwhile: `close` says so first and frees then
                self._sessions.clear()
            return session

    def _dimension(self, truncate_dim: int | None) -> int:
        full = self.manifest.embedding_dim
        if truncate_dim is None:
            return full
        if type(truncate_dim) is not int or not 1 <= truncate_dim <= full:
            dims = ", ".join(map(str, self.manifest.matryoshka_dims))
            raise InputError(
                f"truncate_dim is {truncate_dim!r}, wanted an int from 1 to {full} (the model was trained for {dims})"
            )
        return truncate_dim


def _unproved(manifest: Manifest) -> str | None:
    """The words for towers that are narrowed and were never held against the fp32 bundle."""
    proved = {one.tower for one in manifest.measured if one.against == "fp32 bundle"}
    missing = [name for name in TOWERS if manifest.tower(name).precision != "fp32" and name not in proved]
    if not missing:
        return None
    named = " and ".join(f"the {name} tower ({manifest.tower(name).precision})" for name in missing)
    return (
        f"nobody measured what {named} lost against the fp32 bundle; make it with `edgeclip quantize`, "
        "or see with `edgeclip eval --against`"
    )


def _check_texts(texts: Iterable[str]) -> list[str]:
    is_scalar = isinstance(texts, np.ndarray) and texts.ndim == 0  # says it is iterable, and is not
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable) or is_scalar:
        raise InputError(f"texts must be a str or a sequence of str, found {type(texts).__name__}")
    checked = list(texts)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise InputError(f"text {index} is {type(text).__name__}, wanted str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text {index} holds a lone surrogate, so it is no Unicode text") from error
    return checked


def _check_images(images: Any) -> Sequence[ImageInput]:
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    if isinstance(images, Iterable) and not isinstance(images, np.ndarray) and not hasattr(images, "read"):
        return list(images)  # a file would give its lines
    return [images]  # what it is instead is said where it is decoded


def _check_batch_size(batch_size: int | None) -> None:
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise InputError(f"batch_size is {batch_size!r}, wanted a positive int")
