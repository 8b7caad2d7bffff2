"""`edgeclip embed`: the encoder's vectors to the last bit, from any source, in files that are whole or not there."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip import Encoder, TruncationWarning
from edgeclip.cli import embed, parse_arguments
from tests.conftest import DATA
from tests.scenes.command import NEEDS_SHELL, Captured, refusal, run, run_process, run_shell

FILES = [str(DATA / "images" / name) for name in ("rgb_odd.png", "gray.jpg")]
# The same text in another block. Measured: 2e-7.
SAME = 5e-6
_FILES = sum(path.is_file() for path in DATA.iterdir())  # none of them is an image
TEXTS = ["a red bicycle", "", 'quote " and \\ and \n and \u2028', "海滩上美丽 🚲"]


def read_lines(text: str) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Kind and name of each JSON line, and the vectors."""
    documents = [json.loads(line) for line in text.split("\n")[:-1]]
    assert all(list(document)[1:] == ["embedding"] for document in documents)
    inputs = [next(iter(document.items())) for document in documents]
    return inputs, np.array([document["embedding"] for document in documents], np.float32)


def test_json_lines_hold_the_encoders_vectors(bundle: Path, encoder: Encoder, capsys: Captured) -> None:
    """To the last bit; texts first, each in the order given."""
    options = [option for text in TEXTS for option in ("--text", text)]
    options += [option for file in FILES for option in ("--image", file)]
    status, out, err = run("embed", bundle, *options, capsys=capsys)
    assert (status, err) == (0, "")
    inputs, vectors = read_lines(out)
    assert inputs == [("text", text) for text in TEXTS] + [("image", file) for file in FILES]
    np.testing.assert_array_equal(vectors[: len(TEXTS)], encoder.encode_text(TEXTS))
    np.testing.assert_array_equal(vectors[len(TEXTS) :], encoder.encode_image(FILES))


def test_options_reach_the_encoder(bundle: Path, encoder: Encoder, capsys: Captured) -> None:
    options = ("--task", "retrieval.query", "--truncate-dim", 16, "--batch-size", 1, "--device", "cpu")
    status, out, _ = run("embed", bundle, "--text", "a", "--image", FILES[0], *options, capsys=capsys)
    assert status == 0
    _, (text, image) = read_lines(out)
    np.testing.assert_array_equal(text, encoder.encode_text("a", task="retrieval.query", truncate_dim=16))
    np.testing.assert_array_equal(image, encoder.encode_image(FILES[0], truncate_dim=16))


def test_npy_and_jsonl_files_hold_the_same(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    inputs = ("--text", "a", "--text", "b", "--image", FILES[0], "--truncate-dim", 8)
    _, lines, _ = run("embed", bundle, *inputs, capsys=capsys)
    for name in ("vectors.npy", "vectors.jsonl"):
        status, out, err = run("embed", bundle, *inputs, "--out", tmp_path / name, capsys=capsys)
        assert (status, out) == (0, "")
        assert err == f"{tmp_path / name}: 2 texts, 1 images, 8 dimensions, on cpu\n"
    array = np.load(tmp_path / "vectors.npy")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, read_lines(lines)[1])
    assert (tmp_path / "vectors.jsonl").read_text(encoding="utf-8") == lines
    assert {path.name for path in tmp_path.iterdir()} == {
        *("vectors.npy", "vectors.npy.rows.jsonl", "vectors.npy.job.json"),
        *("vectors.jsonl", "vectors.jsonl.job.json"),
    }


def test_a_file_is_replaced_when_the_new_one_is_whole(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "vectors.npy"
    for texts in (2, 3):
        assert run("embed", bundle, *["--text", "a"] * texts, "--out", out, capsys=capsys)[0] == 0
        assert np.load(out).shape == (texts, 64)
    assert run("embed", bundle, "--text", "a", "--image", "nowhere.png", "--out", out, capsys=capsys)[0] == 1
    assert np.load(out).shape == (3, 64)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
        (b"a\n\n \nb\n", ["a", "", " ", "b"]),
        (b"\n", [""]),
        (b"", []),
        ("a\u2028b\x0cc\n海\n".encode(), ["a\u2028b\x0cc", "海"]),
    ],
    ids=[
        "lines",
        "no last newline",
        "BOM and CRLF",
        "blank lines",
        "one blank line",
        "empty",
        "only newlines part",
    ],
)
def test_a_file_has_a_text_a_line(
    bundle: Path, tmp_path: Path, capsys: Captured, content: bytes, lines: list[str]
) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    status, out, err = run("embed", bundle, "--texts", tmp_path / "texts.txt", capsys=capsys)
    assert (status, err) == (0, "")
    assert [name for _, name in read_lines(out)[0]] == lines


def test_texts_come_from_stdin(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("eins\nzwei 海\n".encode()), "ascii"))
    status, out, _ = run("embed", bundle, "--text", "null", "--texts", "-", capsys=capsys)
    assert status == 0
    assert [name for _, name in read_lines(out)[0]] == ["null", "eins", "zwei 海"]


def test_many_texts_are_one_run(bundle: Path, encoder: Encoder, tmp_path: Path, capsys: Captured) -> None:
    """More than one block of them, in their order, with one warning for all that were cut."""
    texts = [f"text {number} " + "and more " * 20 * (number % 3 == 0) for number in range(600)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    with warnings.catch_warnings():
        warnings.simplefilter("default", TruncationWarning)
        _, out, err = run("embed", bundle, "--texts", tmp_path / "texts.txt", "--max-length", 20, capsys=capsys)
        warnings.simplefilter("ignore", TruncationWarning)
        wanted = encoder.encode_text(texts, max_length=20)
    assert np.abs(read_lines(out)[1] - wanted).max() <= SAME
    assert err == "edgeclip: 200 of 600 texts were cut to 20 tokens\n"


def test_texts_that_were_cut_are_told_though_an_image_fails(bundle: Path) -> None:
    options = ("--text", "a b c d e f g h i j", "--max-length", 4, "--image", "nowhere.png")
    done = run_process("embed", bundle, *options)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "edgeclip: 1 of 1 texts were cut to 4 tokens",
        "edgeclip: image 0 (nowhere.png): no such file",
    ]


def test_who_stops_early_leaves_no_thread(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when the error's traceback is dropped."""

    def stop(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(embed._Stdout, "write", stop)
    options = [word for file in FILES * 9 for word in ("--image", file)]
    with pytest.raises(BrokenPipeError) as caught:
        embed.run(parse_arguments(["embed", str(bundle), *options]))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("edgeclip-images")]
    assert caught.tb is not None


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_an_image_that_does_not_fit_in_memory_is_one_line(bundle: Path, tmp_path: Path, threads: str) -> None:
    """And is not called damaged: as RGB its pixels take 320 MB."""
    Image.new("1", (10_000, 8_000)).save(tmp_path / "large.png")
    program = """if True:
        import os, re, resource, sys
        from edgeclip.cli import main
        *embed, small, large = sys.argv[1:]
        assert main([*embed, small]) == 0
        used = int(re.search(r"VmSize:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + 250_000_000,) * 2)
        sys.exit(main([*embed, large]))
    """
    options = ["embed", str(bundle), "--truncate-dim", "2", "--threads", threads, "--image"]
    command = [sys.executable, "-c", program, *options, FILES[0], str(tmp_path / "large.png")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout.count("\n")) == (1, 1), done.stderr
    told = f"image 0 ({tmp_path / 'large.png'}): needs more memory than there is to decode"
    assert done.stderr == f"edgeclip: {told}; give smaller inputs, fewer at once, or more memory\n"


def test_a_warning_is_a_line_on_stderr(bundle: Path) -> None:
    done = run_process("embed", bundle, "--text", "a b c d e f g h i j", "--max-length", 4)
    assert done.returncode == 0
    assert done.stderr == "edgeclip: 1 of 1 texts were cut to 4 tokens\n"
    assert len(read_lines(done.stdout)[0]) == 1


def test_a_folder_gives_its_images_by_name(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    for name in ("b.PNG", "a.png", "c.jpeg"):
        shutil.copy(FILES[0], tmp_path / name)
    (tmp_path / "notes.txt").touch()
    status, out, _ = run("embed", bundle, "--images", tmp_path, "--image", FILES[1], capsys=capsys)
    assert status == 0
    inputs, vectors = read_lines(out)
    assert [Path(name).name for _, name in inputs] == ["gray.jpg", "a.png", "b.PNG", "c.jpeg"]
    np.testing.assert_array_equal(vectors[1], vectors[3])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_file_name_that_is_not_utf8_comes_back(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    """As the escape that JSON has for it, on stdout and in a file."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    shutil.copy(FILES[0], name)
    status, out, _ = run("embed", bundle, "--image", name, capsys=capsys)
    assert status == 0
    assert read_lines(out)[0] == [("image", name)]
    assert run("embed", bundle, "--image", name, "--out", tmp_path / "v.jsonl", capsys=capsys)[0] == 0
    assert (tmp_path / "v.jsonl").read_text(encoding="utf-8") == out


def test_stdout_is_utf8_in_any_locale(bundle: Path) -> None:
    done = run_process("embed", bundle, "--text", "海 🚲", env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert read_lines(done.stdout)[0] == [("text", "海 🚲")]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--text", "a", "--task", "x"), "task is 'x', wanted None or one that the model knows"),
        (("--image", FILES[0], "--task", "x"), "task is 'x', wanted None or one that the model knows"),
        (("--text", "a", "--truncate-dim", "-5"), "truncate_dim is -5, wanted an int from 1 to 64"),
        (("--text", "a", "--truncate-dim", "0"), "truncate_dim is 0, wanted an int from 1 to 64"),
        (("--texts", os.devnull, "--truncate-dim", "65"), "truncate_dim is 65, wanted an int from 1 to 64"),
        (("--texts", os.devnull, "--max-length", "1"), "max_length is 1, wanted an int from 2 to 8192"),
        (("--image", FILES[0], "--batch-size", "0"), "batch_size is 0, wanted a positive int"),
        (("--text", "a", "--threads", "0"), "threads is 0, wanted an int from 1 to 1024"),
        (("--text", "a", "--device", "gpu"), "unknown device 'gpu'"),
        (("--text", "a\udcff"), "text 0 holds a lone surrogate"),
        (("--image", "nowhere.png"), "image 0 (nowhere.png): no such file"),
        (("--text", "a", "--image", "nowhere.png"), "image 0 (nowhere.png): no such file"),
        (("--image", "https://example.com/a.png"), "URLs are not fetched"),
        (("--image", __file__), "not an image"),
        (("--texts", "nowhere.txt"), "nowhere.txt: cannot be read (No such file or directory)"),
        (("--texts", str(DATA)), "cannot be read (Is a directory)"),
        (("--texts", FILES[0]), "rgb_odd.png: not UTF-8 (invalid start byte at byte 0)"),
        (("--images", "nowhere"), "nowhere: cannot be listed (No such file or directory)"),
        (("--images", FILES[0]), "is a file, wanted a folder of images"),
        (("--images", str(DATA)), f"holds no image (left out {_FILES} files that are no images, e.g. "),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("out", [None, "vectors.npy", "vectors.jsonl"])
def test_bad_input_is_one_line_and_no_file_of_that_name(
    bundle: Path, tmp_path: Path, capsys: Captured, options: tuple[str, ...], told: str, out: str | None
) -> None:
    if out:
        *kept, last = run("embed", bundle, *options, "--out", tmp_path / out, capsys=capsys)[2].splitlines()
        assert last.startswith("edgeclip: ") and told in last
        has_text = bool(options[2:]) and "--text" in options and told.startswith("image 0")
        keeps = [f"edgeclip: {tmp_path / out}.partial: keeps 1 of 2; --resume goes on there"]
        assert kept == (keeps if has_text else [])
        shutil.rmtree(tmp_path / f"{out}.partial", ignore_errors=not has_text)
    else:
        status, _, err = run("embed", bundle, *options, capsys=capsys)  # what came before it is on stdout
        assert status == 1
        assert err.startswith("edgeclip: ") and told in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("vectors.txt", "wanted a name ending in .npy or .jsonl"),
        ("vectors", "wanted a name ending in .npy or .jsonl"),
        ("folder.npy", "is a folder"),
        ("nowhere/vectors.npy", "cannot be written (No such file or directory)"),
    ],
)
def test_a_file_that_cannot_be_written(bundle: Path, tmp_path: Path, capsys: Captured, out: str, told: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    assert told in refusal("embed", bundle, "--text", "a", "--out", tmp_path / out, capsys=capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npy"]


@NEEDS_SHELL
@pytest.mark.parametrize("name", ["vectors.npy", "vectors.jsonl"])
def test_a_full_disk_leaves_no_file(bundle: Path, tmp_path: Path, name: str) -> None:
    """Or a limit on the size of files, which fails in the same place: some vectors are written already."""
    (tmp_path / "texts.txt").write_text("a text\n" * 600)
    line = 'ulimit -f 64; "$1" -m edgeclip embed "$2" --texts "$3" --out "$4"'
    done = run_shell(line, bundle, tmp_path / "texts.txt", tmp_path / name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"edgeclip: {tmp_path / name}: cannot be written (File too large)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def is_begun(folder: Path) -> bool:
    """Whether an input is done, as done.json says."""
    files = list(folder.glob("*.partial/done.json"))
    return bool(files) and json.loads(files[0].read_bytes())["texts"] > 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="waits in a named pipe")
@pytest.mark.parametrize("name", ["vectors.npy", "vectors.jsonl"])
def test_ctrl_c_leaves_no_file_of_that_name(bundle: Path, tmp_path: Path, name: str) -> None:
    """While the second input waits for its file, the first already encoded."""
    os.mkfifo(tmp_path / "image")
    arguments = ["embed", bundle, "--text", "a", "--image", tmp_path / "image", "--out", tmp_path / name]
    command = [sys.executable, "-m", "edgeclip", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not is_begun(tmp_path) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    image, stage = sorted(path.name for path in tmp_path.iterdir())
    assert (image, stage) == ("image", f"{name}.partial")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    kept = f"edgeclip: {tmp_path / name}.partial: keeps 1 of 2; --resume goes on there\n"
    assert err == f"{kept}edgeclip: interrupted\n"
    assert not (tmp_path / name).exists()


@NEEDS_SHELL
def test_a_reader_that_has_seen_enough_is_no_error(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a text\n" * 2000)
    line = '("$1" -m edgeclip embed "$2" --texts "$3"; echo "status $?" >&2) | head -n 1'
    done = run_shell(line, bundle, tmp_path / "texts.txt")
    assert done.stdout.count("\n") == 1
    assert done.stderr == "status 0\n"


@NEEDS_SHELL
def test_a_closed_stdin_is_one_line(bundle: Path) -> None:
    done = run_shell('"$1" -m edgeclip embed "$2" --texts - <&-', bundle)
    assert (done.returncode, done.stderr) == (1, "edgeclip: --texts -: stdin is closed\n")
