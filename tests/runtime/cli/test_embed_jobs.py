"""`edgeclip embed --out`: a bad file costs itself alone, a killed run goes on, and the finished file is the same."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.cli.vector_file import VectorFile
from edgeclip.manifest import Manifest
from tests.conftest import DATA
from tests.scenes.command import Captured, refusal, run, run_process
from tests.scenes.damage import reseal
from tests.scenes.listed_files import read_rows
from tests.scenes.permissions import bound_by_permissions

PNG = (DATA / "images" / "rgb_odd.png").read_bytes()
GRAY = (DATA / "images" / "gray.jpg").read_bytes()
OUTS = ("vectors.npy", "vectors.jsonl")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven pictures, two of them broken, and two other files."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(GRAY if number % 2 else PNG)
    (folder / "2.png").write_bytes(PNG[:300])
    (folder / "6.png").write_bytes(b"")
    (folder / "notes.txt").write_text("BMW")
    (folder / "readme").write_text("hello")
    return folder


def test_a_broken_picture_is_skipped_and_named(
    bundle: Path, encoder: Encoder, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    """In the output, on stderr, and by the exit status; the .npy has a row for each of the others."""
    options = ("--images", photos, "--text", "a", "--skip-broken", "--truncate-dim", 8, "--batch-size", 3)
    names = [str(photos / f"{number}.png") for number in range(7)]
    good = [name for name in names if name[-5] not in "26"]
    for out in (*OUTS, None):
        named = ("--out", tmp_path / out) if out else ()
        status, printed, err = run("embed", bundle, *options, *named, capsys=capsys)
        assert status == 1
        said = err.splitlines()
        assert said[0] == f"edgeclip: {photos}: left out 2 files that are no images, e.g. notes.txt"
        assert said[1].startswith(f"edgeclip: skipped image 2 ({names[2]}): is damaged or cut short (")
        assert said[2] == f"edgeclip: skipped image 6 ({names[6]}): is empty (0 bytes)"
        if out:
            assert said[3:] == [f"{tmp_path / out}: 1 texts, 5 images, 8 dimensions, on cpu, 2 skipped"]
        rows = read_rows(tmp_path / out if out else printed)
        assert [row.name for row in rows] == ["a", *names]
        assert [row.name for row in rows if row.vector is None] == [names[2], names[6]]
        assert rows[7].error == "is empty (0 bytes)"
        found = np.array([row.vector for row in rows[1:] if row.vector is not None])
        assert np.abs(found - encoder.encode_image(good, truncate_dim=8)).max() <= 5e-6
    assert np.load(tmp_path / "vectors.npy").shape == (6, 8)


def test_without_the_option_the_first_broken_picture_ends_it(
    bundle: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    """What was done before it is kept, and goes on with --skip-broken; nothing has the file's name."""
    command = ("embed", bundle, "--images", photos, "--out", tmp_path / "v.npy")
    status, _, err = run(*command, capsys=capsys)
    assert status == 1 and err.splitlines()[1:] == [
        f"edgeclip: {tmp_path / 'v.npy'}.partial: keeps 2 of 7; --resume goes on there",
        err.splitlines()[-1],
    ]
    assert err.splitlines()[-1].startswith(f"edgeclip: image 2 ({photos / '2.png'}): is damaged")
    assert not (tmp_path / "v.npy").exists()
    status, _, err = run(*command, "--resume", "--skip-broken", capsys=capsys)
    assert status == 1 and f"{tmp_path / 'v.npy'}.partial: 2 of 7 are done" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "photos",
        "v.npy",
        "v.npy.job.json",
        "v.npy.rows.jsonl",
    ]
    assert [row.name[-5] for row in read_rows(tmp_path / "v.npy")] == list("0123456")
    assert run(*command[:4], "--out", tmp_path / "w.npy", "--skip-broken", capsys=capsys)[0] == 1
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "w.npy").read_bytes()


@pytest.mark.parametrize("mend", ["replaced", "removed", "added"])
def test_it_goes_on_when_the_picture_is_mended(
    bundle: Path, photos: Path, tmp_path: Path, capsys: Captured, mend: str
) -> None:
    """Only what is done must be as it was: images after it may be replaced, removed and added."""
    command = ("embed", bundle, "--images", photos, "--batch-size", 1, "--out")
    assert run(*command, tmp_path / "v.npy", capsys=capsys)[0] == 1
    (photos / "6.png").write_bytes(GRAY)
    if mend == "removed":
        (photos / "2.png").unlink()
    else:
        (photos / "2.png").write_bytes(PNG)
    if mend == "added":
        (photos / "9.png").write_bytes(GRAY)
    total = {"replaced": 7, "removed": 6, "added": 8}[mend]
    status, _, err = run(*command, tmp_path / "v.npy", "--resume", capsys=capsys)
    assert status == 0 and f"{tmp_path / 'v.npy'}.partial: 2 of {total} are done" in err
    assert run(*command, tmp_path / "w.npy", capsys=capsys)[0] == 0
    for suffix in ("", ".rows.jsonl"):
        assert (tmp_path / f"v.npy{suffix}").read_bytes() == (tmp_path / f"w.npy{suffix}").read_bytes()


@pytest.mark.parametrize("name", OUTS)
def test_a_finished_file_is_not_written_again(
    bundle: Path, photos: Path, tmp_path: Path, capsys: Captured, name: str
) -> None:
    """The exit status is as before; a file of another job, or one that was changed since, is begun anew."""
    out = tmp_path / name
    command = ("embed", bundle, "--images", photos, "--skip-broken", "--resume", "--out", out)
    assert run(*command, capsys=capsys)[0] == 1
    before = out.stat()
    status, _, err = run(*command, capsys=capsys)
    assert (status, out.stat().st_mtime_ns, out.stat().st_ino) == (1, before.st_mtime_ns, before.st_ino)
    told = f"{out}: 0 texts, 5 images, 64 dimensions, on cpu, 2 skipped"
    assert err.splitlines()[1:] == [f"edgeclip: {out}: is finished", told]
    assert not list(tmp_path.glob("*.partial"))
    (photos / "2.png").write_bytes(PNG)
    for change in (lambda: None, lambda: out.write_bytes(out.read_bytes()), out.unlink):
        change()
        assert "nothing is done yet; begins with the first input" in run(*command, capsys=capsys)[2]
    assert (
        run(*command, "--truncate-dim", 8, capsys=capsys)[2]
        .splitlines()[-1]
        .endswith("8 dimensions, on cpu, 1 skipped")
    )


# Killed when it is about to rename or remove its Nth file.
KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from edgeclip.cli.vector_file import VectorFile

out, last, *options = sys.argv[1:]
left = int(last)

def count(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

with VectorFile(Path(out), {"job": 1}, ["a", "b"], 2, 3, is_resumed=bool(options)) as file:
    if file.done.images == 0:
        file.write("image", ["a", "b"], np.arange(6, dtype=np.float32).reshape(2, 3))
        file.checkpoint(is_last=True)
    sys.addaudithook(count)
    file.finish()
"""


@pytest.mark.parametrize("name", OUTS)
def test_a_run_that_is_killed_while_it_finishes_loses_nothing(tmp_path: Path, name: str) -> None:
    """At any of its steps; --resume gives the names that are missing, and the rows of an older file never stay."""
    step, is_killed = 0, True
    while is_killed:
        step += 1
        out = tmp_path / str(step) / name
        out.parent.mkdir()
        beside = [out.with_name(f"{name}.rows.jsonl")] if name.endswith("npy") else []
        for path in (out, *beside):
            path.write_bytes(b"old")
        command = [sys.executable, "-c", KILLED, str(out)]
        is_killed = subprocess.run([*command, str(step)], check=False, capture_output=True).returncode < 0
        done = subprocess.run([*command, "-1", "--resume"], check=True, capture_output=True, text=True)
        assert ("is finished" in done.stderr) or ("2 of 2 are done" in done.stderr)
        assert sorted(path.name for path in out.parent.iterdir()) == sorted(
            [name, f"{name}.job.json", *(path.name for path in beside)]
        )
        if name.endswith("npy"):
            np.testing.assert_array_equal(np.load(out), np.arange(6).reshape(2, 3))
        rows = [json.loads(line)["image"] for line in (*beside, out)[0].read_text().splitlines()]
        assert rows == ["a", "b"]
    assert step > 6


def test_the_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    """When this run's file is finished, a folder of that name is one that another run has just made."""
    out = tmp_path / "v.npy"
    with VectorFile(out, {}, ["a"], 1, 2, is_resumed=False) as file:
        file.write("image", ["a"], np.ones((1, 2), np.float32))
        file.finish()
        other = Path(f"{out}.partial")
        other.mkdir()
        (other / "done.json").write_text("{}")
    assert (other / "done.json").exists()


def test_a_resumed_run_counts_images_from_the_first(
    bundle: Path, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    command = ("embed", bundle, "--images", photos, "--out", tmp_path / "v.npy", "--resume")
    for _ in range(2):
        assert (
            run(*command, capsys=capsys)[2].splitlines()[-1].startswith(f"edgeclip: image 2 ({photos / '2.png'}): ")
        )


def test_a_text_that_was_cut_is_marked(bundle: Path, tmp_path: Path) -> None:
    texts = ("--text", "a", "--text", "a b c d e f g h", "--text", "b")
    assert run_process("embed", bundle, *texts, "--max-length", 5, "--out", tmp_path / "v.npy").returncode == 0
    lines = (tmp_path / "v.npy.rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == [
        {"row": 0, "text": "a"},
        {"row": 1, "text": "a b c d e f g h", "cut": True},
        {"row": 2, "text": "b"},
    ]


# The command line in a process that stands still before its end, however late the test that is to kill it looks.
_UNFINISHED = """if True:
    import json, os, signal, sys
    from edgeclip.__main__ import main
    from edgeclip.cli import vector_file

    vector_file._PAUSE_S = vector_file._PAUSE_TIMES = 0  # else a slow disk has the next checkpoint at the end
    write = vector_file.replace_bytes
    def write_and_stop(path, data):
        write(path, data)
        if path.name == "done.json" and sum(map(json.loads(data).get, ("texts", "images"))) > 800:
            os.kill(os.getpid(), signal.SIGSTOP)
    vector_file.replace_bytes = write_and_stop
    sys.exit(main())
"""


class Job:
    """A run of many texts and pictures in a process of its own, to be killed when it has done some."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.folder = folder
        (folder / "photos").mkdir()
        for number in range(300):
            (folder / "photos" / f"{number:03}.png").write_bytes(GRAY if number % 3 else PNG)
        (folder / "photos" / "100.png").write_bytes(PNG[:200])
        (folder / "texts.txt").write_text("".join(f"text {number}\n" for number in range(600)))
        inputs = ("--texts", folder / "texts.txt", "--images", folder / "photos", "--batch-size", 7, "--skip-broken")
        self.command = ["embed", bundle, *inputs, "--threads", 1]

    def done(self, out: Path) -> int:
        with contextlib.suppress(OSError):
            done = json.loads(Path(f"{out}.partial", "done.json").read_bytes())
            return int(done["texts"] + done["images"])
        return 0

    @contextlib.contextmanager
    def running(self, out: Path, least: int, *options: object) -> Iterator[subprocess.Popen[str]]:
        """The process, when it has done `least` inputs, of which it has not done the last hundred."""
        command = [sys.executable, "-c", _UNFINISHED, *map(str, [*self.command, "--out", out, *options])]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 120
            while self.done(out) < least and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            yield process
            process.kill()


@pytest.fixture
def job(bundle: Path, tmp_path: Path) -> Job:
    return Job(bundle, tmp_path)


@pytest.mark.parametrize("name", OUTS)
def test_a_killed_run_goes_on_to_the_same_file(job: Job, tmp_path: Path, name: str) -> None:
    """To the last bit, though killed twice: among the texts, and among the pictures."""
    out = tmp_path / name
    done = []
    for least, options in ((256, ()), (620, ("--resume",))):
        with job.running(out, least, *options) as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not out.exists() and Path(f"{out}.partial").is_dir()
        done.append(job.done(out))
    assert 256 <= done[0] <= done[1] < 900
    finished = run_process(*job.command, "--out", out, "--resume")
    assert finished.returncode == 1 and f"{out}.partial: {done[1]} of 900 are done" in finished.stderr
    assert finished.stderr.splitlines()[-1].endswith("600 texts, 299 images, 64 dimensions, on cpu, 1 skipped")
    whole = tmp_path / "whole" / name
    whole.parent.mkdir()
    assert run_process(*job.command, "--out", whole).returncode == 1
    for suffix in ("", ".rows.jsonl") if name == "vectors.npy" else ("",):
        assert Path(f"{out}{suffix}").read_bytes() == Path(f"{whole}{suffix}").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_what_changed_meanwhile_is_said(job: Job, copied_bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    """And nothing of the interrupted run is lost by asking."""
    out, photos = tmp_path / "v.npy", tmp_path / "photos"
    with job.running(out, 620) as process:
        process.send_signal(signal.SIGKILL)
    done = job.done(out)
    command = (*job.command, "--out", out, "--resume")
    begun = f"since {out}.partial was begun; start again without --resume"

    def told(*options: object, bundle: object = job.command[1]) -> str:
        return refusal(command[0], bundle, *command[2:], *options, capsys=capsys)

    assert told("--task", "retrieval.query").startswith("--resume: --task was None when ")
    assert told("--threads", 2).startswith("--resume: the number of threads was 1 when ")
    assert told("--truncate-dim", 8).startswith("--resume: --truncate-dim was 64 when ")
    assert told("--text", "one more").startswith("--resume: the number of texts was 600 when ")
    source = Manifest.read(copied_bundle).source
    reseal(copied_bundle, source=dataclasses.replace(source, name="renamed"))
    assert told(bundle=copied_bundle).startswith("--resume: the bundle's manifest was ")
    (photos / "0.png").write_bytes(PNG)
    assert told() == f"--resume: {photos / '0.png'} has come to the images {begun}"
    (photos / "0.png").unlink()
    (photos / "005.png").rename(tmp_path / "005.png")
    assert told() == f"--resume: {photos / '005.png'} is no longer among the images {begun}"
    (tmp_path / "005.png").rename(photos / "005.png")
    before = (photos / "006.png").stat()
    os.utime(photos / "006.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert told() == f"--resume: {photos / '006.png'} was changed {begun}"
    os.utime(photos / "006.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert job.done(out) == done
    assert run_process(*command).stderr.splitlines()[-1].startswith(f"{out}: 600 texts")


def test_two_runs_do_not_write_one_file(job: Job, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "v.npy"
    with job.running(out, 1) as process:
        assert "another process is writing it" in refusal(*job.command, "--out", out, capsys=capsys)
        assert process.poll() is None


def test_what_is_left_is_replaced_or_damaged(bundle: Path, photos: Path, tmp_path: Path, capsys: Captured) -> None:
    """Without --resume a run begins anew and says so; with it, a folder that is not as it was is an error."""
    command = ("embed", bundle, "--images", photos, "--out", tmp_path / "v.npy")
    assert run(*command, capsys=capsys)[0] == 1
    (tmp_path / "v.npy.partial" / "vectors").write_bytes(b"")
    assert "is damaged (vectors is shorter than it was); start again" in refusal_of(command, capsys)
    (tmp_path / "v.npy.partial" / "done.json").write_bytes(b"{")
    assert "is damaged" in refusal_of(command, capsys)
    status, _, err = run(*command, "--skip-broken", capsys=capsys)
    assert status == 1 and f"{tmp_path / 'v.npy'}.partial: replaces what an interrupted run left there" in err
    assert len(np.load(tmp_path / "v.npy")) == 5


def refusal_of(command: tuple[object, ...], capsys: Captured) -> str:
    status, _, err = run(*command, "--resume", capsys=capsys)
    assert status == 1
    return err.splitlines()[-1]


def test_usage(bundle: Path, capsys: Captured) -> None:
    for options, told in ((("--resume",), "give --out"), (("--recursive",), "give --images")):
        with pytest.raises(SystemExit) as caught:
            run("embed", bundle, "--text", "a", *options, capsys=capsys)
        assert caught.value.code == 2 and told in capsys.readouterr().err


@bound_by_permissions
def test_a_subfolder_that_cannot_be_read_is_said(bundle: Path, photos: Path, capsys: Captured) -> None:
    (photos / "shut").mkdir(mode=0)
    told = refusal("embed", bundle, "--images", photos, "--recursive", capsys=capsys)
    reason = "could not read 1, e.g. shut (Permission denied)"
    assert told == f"{photos}: {reason}; make it readable, or leave it out with --skip-broken"


def test_heic_that_cannot_be_decoded_ends_it_before_the_first_picture(
    bundle: Path, photos: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeclip.inputs.images.known_formats", lambda: ["JPEG", "PNG"])
    (photos / "9").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    told = refusal("embed", bundle, "--images", photos, capsys=capsys)
    assert told.startswith(f"{photos}: 1 of its 8 images, e.g. 9, need pillow-heif: `pip install ")


@pytest.mark.parametrize("options", [("--max-length", "4"), ()], ids=["a warning of ours", "none"])
def test_warnings_as_errors_do_not_cost_the_file(bundle: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """A warning is one line and status 1, after the file is finished."""
    command = ["embed", bundle, "--text", "a b c d e f g h", "--image", DATA / "images" / "gray.jpg", *options]
    command += ["--out", tmp_path / "v.npy"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "edgeclip", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )
    told = "edgeclip: 1 of 1 texts were cut to 4 tokens (a TruncationWarning, and warnings are errors here)\n"
    assert done.stderr == f"{tmp_path / 'v.npy'}: 1 texts, 1 images, 64 dimensions, on cpu\n" + told * bool(options)
    assert done.returncode == bool(options)
    assert np.load(tmp_path / "v.npy").shape == (2, 64)
