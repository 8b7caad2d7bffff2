"""Vectors are the encoder's, each input is computed once, and a cached one is found by its content alone."""

import dataclasses
import gc
import hashlib
import io
import os
import shutil
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from edgeclip import BundleError, Encoder, InputError, TruncationWarning
from edgeclip.manifest import Manifest
from edgeclip_bench.quality.cache import EmbeddingCache
from edgeclip_bench.quality.embeddings import (
    Counts,
    Embedder,
    Vectors,
    graph_files,
)
from edgeclip_bench.quality.spaces import space_of
from tests.scenes.damage import flip_byte, reseal
from tests.scenes.evaluation_data import draw_images

# The same text in another batch. Measured: 2e-7.
SAME = 5e-6
TEXTS = ["a red bicycle", "", "海滩上美丽", "a red bicycle", "دراجة", ""]
LONG = "a " * 100
TASK = "retrieval.query"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def embed_texts(encoder: Encoder, folder: Path | None, texts: list[str], **options: str) -> tuple[Vectors, Counts]:
    with EmbeddingCache(folder) as cache:
        embedder = Embedder(encoder, cache)
        return embedder.texts(texts, len(texts), **options), embedder.take_counts()


def embed_images(encoder: Encoder, folder: Path | None, paths: tuple[Path, ...]) -> tuple[Vectors, Counts]:
    with EmbeddingCache(folder) as cache:
        embedder = Embedder(encoder, cache)
        return embedder.images(paths), embedder.take_counts()


def test_vectors_are_the_encoders_in_order(encoder: Encoder, tmp_path: Path) -> None:
    found, counts = embed_texts(encoder, None, TEXTS)
    np.testing.assert_allclose(found, encoder.encode_text(TEXTS), rtol=0, atol=SAME)
    assert counts == Counts(inputs=6, repeated=2, computed=4)
    paths = draw_images(tmp_path, 3)
    found, counts = embed_images(encoder, None, (*paths, paths[0]))
    np.testing.assert_array_equal(found, encoder.encode_image([*paths, paths[0]]))
    assert counts == Counts(inputs=4, repeated=1, computed=3)


def test_repetitions_across_blocks_are_computed_once(encoder: Encoder) -> None:
    texts = [f"text {index % 300}" for index in range(700)]
    found, counts = embed_texts(encoder, None, texts)
    np.testing.assert_allclose(found, encoder.encode_text(texts), rtol=0, atol=SAME)
    assert counts == Counts(inputs=700, repeated=400, computed=300)


def test_a_second_run_computes_nothing(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    first, _ = embed_texts(encoder, folder, TEXTS)
    second, counts = embed_texts(encoder, folder, TEXTS[::-1])
    assert counts == Counts(inputs=6, repeated=2, cached=4)
    np.testing.assert_array_equal(second, first[::-1])
    paths = draw_images(tmp_path / "images")
    first, _ = embed_images(encoder, folder, paths)
    second, counts = embed_images(encoder, folder, paths)
    assert counts == Counts(inputs=12, cached=12)
    np.testing.assert_array_equal(second, first)


def test_only_what_is_new_is_computed(encoder: Encoder, folder: Path) -> None:
    embed_texts(encoder, folder, TEXTS[:2])
    found, counts = embed_texts(encoder, folder, TEXTS)
    assert counts == Counts(inputs=6, repeated=2, cached=2, computed=2)
    np.testing.assert_allclose(found, encoder.encode_text(TEXTS), rtol=0, atol=SAME)


def test_an_image_is_known_by_its_bytes(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    """Not by name or time: a renamed copy is found, and another picture under the old name is not."""
    paths = draw_images(tmp_path / "images", 3)
    embed_images(encoder, folder, paths)
    copy = shutil.copyfile(paths[0], tmp_path / "renamed.png")
    assert embed_images(encoder, folder, (copy,))[1] == Counts(inputs=1, cached=1)
    stamps = [path.stat() for path in paths]
    shutil.copyfile(paths[2], paths[1])
    changed = draw_images(tmp_path / "other", 5)[4]
    shutil.copyfile(changed, paths[0])
    for path, stamp in zip(paths, stamps, strict=True):
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    found, counts = embed_images(encoder, folder, paths)
    assert counts == Counts(inputs=3, repeated=1, cached=1, computed=1)
    np.testing.assert_array_equal(found, encoder.encode_image(list(paths)))


def test_the_task_is_part_of_what_is_embedded(encoder: Encoder, folder: Path) -> None:
    plain, _ = embed_texts(encoder, folder, ["a"])
    found, counts = embed_texts(encoder, folder, ["a"], task=TASK)
    assert counts == Counts(inputs=1, computed=1)
    np.testing.assert_array_equal(found[0], encoder.encode_text("a", task=TASK))
    assert np.abs(found - plain).max() > 1e-3
    typed = encoder.manifest.tasks[TASK].prompt + "a"
    assert embed_texts(encoder, folder, [typed])[1] == Counts(inputs=1, cached=1)


def test_an_unknown_task_is_refused_without_texts_too(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"task is 'x', wanted None or one that the model knows: 'retrieval.query'"):
        embed_texts(encoder, None, [], task="x")


@pytest.fixture
def short_encoder(copied_bundle: Path) -> Iterator[Encoder]:
    """One whose texts end at 19 tokens; the instruction takes 8 of them, and a "b" is two."""
    facts = Manifest.read(copied_bundle).need_text()
    reseal(copied_bundle, text=dataclasses.replace(facts, max_length=19))
    with Encoder.open(copied_bundle, device="cpu") as opened:
        yield opened


@pytest.mark.parametrize(
    ("texts", "task", "cut"),
    [
        (["a", LONG, "b", LONG + "c", LONG], None, 3),
        ([LONG], None, 1),
        (["a", "a " * 15], None, 0),
        (["a", "b b b b b", "c"], TASK, 1),  # cut only behind the instruction: its length does not tell
        (["c", "b b b b b", "a", "b b b b c"], TASK, 2),
    ],
)
def test_texts_that_are_cut_are_counted_also_when_cached(
    short_encoder: Encoder, folder: Path, texts: list[str], task: str | None, cut: int
) -> None:
    """And no warning leaves: whoever evaluates sums them up."""
    options = {"task": task} if task else {}
    with pytest.warns(TruncationWarning) if cut else nullcontext([]) as told:
        wanted = short_encoder.encode_text(texts, **options)  # type: ignore[arg-type]
    assert sum(warning.message.cut for warning in told) == cut  # type: ignore[union-attr]
    for _ in range(2):
        found, counts = embed_texts(short_encoder, folder, texts, **options)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=SAME)
        assert counts.cut == cut
    for text in set(texts):
        one = embed_texts(short_encoder, folder, [text], **options)[1]
        assert one.cached == 1
        cut -= one.cut * texts.count(text)
    assert cut == 0


def test_each_file_of_a_bundle_is_a_graphs_the_tokenizer_or_the_selftest(encoder: Encoder) -> None:
    manifest = encoder.manifest
    text, vision = ({file.name for file in graph_files(manifest, graph)} for graph in ("text", "vision"))
    assert not text & vision
    others = {manifest.need_text().file, manifest.selftest}
    others |= {file.name for file in manifest.files if file.name.endswith(".portable.onnx")}  # for quantize
    assert text | vision | others == {file.name for file in manifest.files}


def test_a_damaged_bundle_keeps_nothing(copied_bundle: Path, folder: Path) -> None:
    """Its weights are not read by the graph's hash; what they answer must not be taken for the whole one's."""
    facts = Manifest.read(copied_bundle).graphs["text"]
    flip_byte(copied_bundle / f"{facts.file}_data", 1000)
    with Encoder.open(copied_bundle, device="cpu") as encoder, EmbeddingCache(folder) as cache:
        embedder = Embedder(encoder, cache)
        with pytest.raises(BundleError, match="text.onnx_data is not what was exported"):
            embedder.texts(["a"], 1)
        assert cache.read(space_of(encoder, "text"), [hashlib.sha256(b"\0a").digest()]) == {}
        with pytest.raises(BundleError, match="text.onnx_data is not what was exported"):
            embedder.texts(["a"], 1)


def test_a_damaged_bundle_is_not_given_the_whole_ones_vectors(
    bundle: Path, copied_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    """Its manifest, and so its space, is the same. A graph that is not asked is not hashed."""
    paths = draw_images(tmp_path / "images", 3)
    flip_byte(copied_bundle / f"{Manifest.read(bundle).graphs['vision'].file}_data", 1000)
    for path in (bundle, copied_bundle):
        with Encoder.open(path, device="cpu") as encoder, EmbeddingCache(folder) as cache:
            embedder = Embedder(encoder, cache)
            embedder.texts(TEXTS, len(TEXTS))
            if path == bundle:
                embedder.images(paths)
                continue
            with pytest.raises(BundleError, match="vision.onnx_data is not what was exported"):
                embedder.images(paths)
            assert embedder.take_counts() == Counts(inputs=6, repeated=2, cached=4)


def test_an_image_that_cannot_be_read_is_named_and_those_before_it_are_kept(
    encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    paths = draw_images(tmp_path / "images", 3)
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    with pytest.raises(InputError) as caught:
        embed_images(encoder, folder, paths)
    assert str(paths[2]) in str(caught.value)
    paths[2].unlink()
    with pytest.raises(InputError, match=r"0002.png: cannot be read \(No such file or directory\)"):
        embed_images(encoder, folder, paths)
    assert embed_images(encoder, folder, paths[:2])[1] == Counts(inputs=2, cached=2)


@pytest.mark.parametrize(("count", "said"), [(1, "found more than the 1 expected"), (3, "found 2, expected 3")])
def test_a_corpus_that_changed_is_said(encoder: Encoder, count: int, said: str) -> None:
    with EmbeddingCache(None) as cache, pytest.raises(InputError, match=f"documents: {said}; did a file change?"):
        Embedder(encoder, cache).texts(iter(["a", "b"]), count, label="documents")


def test_a_lone_surrogate_is_said(encoder: Encoder) -> None:
    with pytest.raises(InputError, match="texts: number 1 holds a lone surrogate"):
        embed_texts(encoder, None, ["a", "\ud800"])


def test_the_bar_tells_cached_from_new(encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip.progress._DELAY_S", 0)
    embed_texts(encoder, folder, TEXTS[:2])
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with EmbeddingCache(folder) as cache:
        Embedder(encoder, cache, progress=True).texts(TEXTS, len(TEXTS), label="captions")
    assert "captions: 2 cached, 0 new, [" in stream.getvalue()


def peak_bytes(work: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_the_vectors_alone(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    """A text is 2 kB here, an image's pixels 12 kB; a vector is 256 bytes, and where it stands under 300.

    The first measurement has what Python and the encoder make once, and any may meet another thread's work: what is
    held stands in each of them, so the least of three is looked at.
    """

    def texts(attempt: int, count: int) -> Iterator[str]:
        return (f"{attempt} text {index} " + " " * 2000 for index in range(count))

    def growth_of_texts(attempt: int) -> int:
        with EmbeddingCache(folder) as cache:
            embedder = Embedder(encoder, cache)
            embedder.texts(texts(attempt, 400), 400)
            few, many = (
                peak_bytes(lambda count=count: embedder.texts(texts(attempt, count), count)) for count in (400, 2000)
            )
            return many - few

    def growth_of_images(attempt: int) -> int:
        with EmbeddingCache(None) as cache:  # both compute all of theirs
            embedder = Embedder(encoder, cache)
            few, many = (peak_bytes(lambda count=count: embedder.images(paths[:count])) for count in (50, 200))
            return many - few

    paths = draw_images(tmp_path / "images", 200)
    assert any(growth_of_texts(attempt) < 1600 * 600 for attempt in range(3))
    assert any(growth_of_images(attempt) < 150 * 600 for attempt in range(3))
