"""The file that `edgeclip embed --out` writes: under its name when it is whole, gone on with after an interruption.

While it is written, all of it lies in the folder OUT.partial:

    job.json       what decides the vectors: the bundle's manifest, versions, device, threads, options, texts
    images.jsonl   each image's path, size and time of change, so that --resume finds what changed meanwhile
    done.json      how far it is: written a few times a second, after the vectors are on the disk
    vectors        the beginning of OUT; the rows of a .npz, which are packed in the end
    rows.jsonl     the beginning of OUT.rows.jsonl, which says what each row of a .npy or .npz is
    finished.json  OUT.job.json to be, by which --resume knows a finished file of the same job

A run that is killed, or ended by Ctrl-C, a full disk, a power cut or a bad file, leaves the folder if anything in it
is done. What was written after the last done.json is cut off and computed again, in the same batches, so the finished
file is the same to the last bit. Images that are not done yet may change, come and go meanwhile. Once done.json says
that the file is whole, only names are left to be given, and --resume gives those that are missing. The folder is
locked as long as a process writes it.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from edgeclip.cli.durable_files import flush, flush_folder, open_at, replace_bytes
from edgeclip.errors import BuildError, InputError
from edgeclip.multi_vectors import MultiVectors

try:
    import fcntl
except ImportError:  # Windows has none: there, two runs into one file are not kept apart
    fcntl = None  # type: ignore[assignment]

# From one checkpoint to the next, and at least so many times as long as one took: fsync is slow on some disks.
_PAUSE_S, _PAUSE_TIMES = 0.1, 20
_AGAIN = "start again without --resume"

# A vector for each input, (N, D), or a matrix for each.
Encoded = NDArray[np.float32] | MultiVectors


@dataclass(slots=True, kw_only=True)
class Done:
    """How far a job is: inputs that are done, rows written for them, bytes of the two files, and what was special."""

    texts: int = 0
    images: int = 0
    rows: int = 0
    vector_bytes: int = 0
    row_bytes: int = 0
    cut: int = 0
    skipped: int = 0
    is_whole: bool = False  # nothing is left but to give the files their names

    @property
    def inputs(self) -> int:
        """Texts and images together."""
        return self.texts + self.images


class VectorFile:
    """A context manager: `write` and `skip` for the inputs in their order, `checkpoint` after a batch, `finish`.

    `job` and `images` say what is written; with `is_resumed` what an interrupted run did counts, and `done` says how
    far it came. Raises InputError where the file cannot be written, another process writes it, or the interrupted run
    was of another job.

    OUT is a .npy of single vectors, a .npz of multi vectors as `MultiVectors.load` reads it, or a .jsonl of either.
    """

    def __init__(
        self,
        out: Path,
        job: dict[str, Any],
        images: Iterable[str],
        total: int,
        dim: int,
        *,
        is_resumed: bool,
        is_multi: bool = False,
    ) -> None:
        self.done = Done()
        self._out, self._total, self._dim = out, total, dim
        self._folder = out.with_name(f"{out.name}.partial")
        self._rows_out = out.with_name(f"{out.name}.rows.jsonl")
        self._job_out = out.with_name(f"{out.name}.job.json")
        self._is_binary, self._is_multi = out.suffix in (".npy", ".npz"), is_multi
        self._job, self._images, self._is_resumed = job, images, is_resumed
        self._lock: int | None = None
        self._next_at = 0.0
        self._is_torn = False  # in the middle of a batch
        self._is_finished = False
        self._files: list[BinaryIO] = []

    def write(self, kind: str, names: Sequence[str], vectors: Encoded, cut: Collection[int] = ()) -> None:
        """A vector (D,) or a matrix (T, D) for each of the inputs; `cut` are the positions in `names` of the texts
        that were cut.
        """
        self._is_torn = True
        if self._is_binary:
            for position, (name, vector) in enumerate(zip(names, vectors, strict=True)):
                self._files[0].write(vector.astype("<f4").tobytes())
                row: dict[str, Any] = {"row": self.done.rows}
                if self._is_multi:
                    row["rows"] = len(vector)
                row |= {kind: name} | ({"cut": True} if position in cut else {})
                self._files[1].write(_line(row))
                self.done.rows += len(vector) if self._is_multi else 1
        else:
            for line in json_lines(kind, names, vectors):
                self._files[0].write(line.encode(errors="backslashreplace"))
            self.done.rows += len(names)
        self.done.cut += len(cut)
        self._count(kind, len(names))

    def skip(self, kind: str, name: str, reason: str) -> None:
        """No row for an input, but a line that says why."""
        self._is_torn = True
        if self._is_binary:
            self._files[1].write(_line({"row": None, kind: name, "error": reason}))
        else:
            self._files[0].write(skipped_line(kind, name, reason, is_multi=self._is_multi))
        self.done.skipped += 1
        self._count(kind, 1)

    def checkpoint(self, *, is_last: bool = False) -> None:
        """Make sure of what is written so far: a run that is killed later goes on from here. Between batches only."""
        self._is_torn = False
        started = time.monotonic()
        if started < self._next_at and not is_last:
            return
        self.done.vector_bytes, self.done.row_bytes = (flush(file) for file in self._files)
        replace_bytes(self._folder / "done.json", json.dumps(asdict(self.done)).encode())
        now = time.monotonic()
        self._next_at = now + max(_PAUSE_S, _PAUSE_TIMES * (now - started))

    def finish(self) -> None:
        """Give the file its name, and what lies beside it theirs."""
        if self._is_finished:
            return
        if self._is_binary:
            self._files[0].flush()
            self._files[0].seek(0)
            self._write_header(self.done.rows)
            begins = self._files[0].tell()
            if self._files[0].seek(0, os.SEEK_END) != begins + 4 * self.done.rows * self._dim:
                raise BuildError(f"{self._folder}: has not the bytes of {self.done.rows} rows; {_AGAIN}")
        for written in self._files:
            written.flush()
        if self._is_packed:
            self._pack()
        found = os.stat(self._whole)
        images = _hash_of(self._folder / "images.jsonl")
        finished = {"job": self._job, "images": images, "out": [found.st_size, found.st_mtime_ns]}
        self.done.is_whole = True
        replace_bytes(self._folder / "finished.json", json.dumps(finished | {"done": asdict(self.done)}).encode())
        self.checkpoint(is_last=True)
        for written in self._files:
            written.close()
        self._give_names()
        self._remove_folder()

    @property
    def _is_packed(self) -> bool:
        """Whether OUT is a .npz."""
        return self._is_binary and self._is_multi

    @property
    def _whole(self) -> Path:
        """The file that becomes OUT."""
        return self._folder / ("packed" if self._is_packed else "vectors")

    def _pack(self) -> None:
        """Copy the rows, and where those of each input begin, into one .npz."""
        starts = [0]
        with (self._folder / "rows.jsonl").open("rb") as lines:
            starts += (row["row"] + row["rows"] for row in map(json.loads, lines) if row["row"] is not None)
        with self._whole.open("wb") as packed:
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:
                file.write(self._folder / "vectors", "rows.npy")
                with file.open("starts.npy", "w") as member:
                    np.save(member, np.array(starts, np.int64))
            flush(packed)

    def _give_names(self) -> None:
        """Rename what is not renamed yet; then nothing is left to be done."""
        if self._whole.exists():
            for beside in (
                self._rows_out,
                self._job_out,
            ):  # what is of an older file must not stand beside the new one
                beside.unlink(missing_ok=True)
            self._whole.replace(self._out)
        for name, out in (("rows.jsonl", self._rows_out), ("finished.json", self._job_out)):
            path = self._folder / name
            if path.exists() and (self._is_binary or name == "finished.json"):
                path.replace(out)
        flush_folder(self._out.parent)
        (self._folder / "done.json").unlink()

    def _remove_folder(self) -> None:
        shutil.rmtree(self._folder)
        self._is_finished = True

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException as error:
            self._leave(is_told=False)
            if isinstance(error, ValueError | TypeError | KeyError) and not isinstance(error, InputError):
                raise InputError(f"{self._folder}: is damaged ({error}); {_AGAIN}") from error
            self._raise_if_disk(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, OSError) and not (self._is_torn or self.done.is_whole):
            with contextlib.suppress(OSError):
                self.checkpoint(is_last=True)
        self._leave(is_told=True)
        self._raise_if_disk(error)

    def _open(self) -> None:
        is_old = self._folder.is_dir()
        self._folder.mkdir(exist_ok=True)
        self._lock = self._lock_folder()
        saved = self._folder / "done.json"
        if self._is_resumed and saved.exists():
            self.done = Done(**json.loads(saved.read_bytes()))
            if self.done.is_whole:
                self._give_names()
                self.done = Done()
        is_begun = self._is_resumed and saved.exists()
        if self._is_resumed and not is_begun and self._is_out_of_this_job():
            print(f"edgeclip: {self._out}: is finished", file=sys.stderr)
            self._remove_folder()
            return
        if is_begun:
            self._check_job()
            self._check_images()
            print(f"edgeclip: {self._folder}: {self.done.inputs} of {self._total} are done", file=sys.stderr)
        else:
            if self._is_resumed:
                print(f"edgeclip: {self._folder}: nothing is done yet; begins with the first input", file=sys.stderr)
            elif is_old:
                print(f"edgeclip: {self._folder}: replaces what an interrupted run left there", file=sys.stderr)
            for path in self._folder.iterdir():
                path.unlink()
            flush_folder(self._out.parent)
            replace_bytes(self._folder / "job.json", json.dumps(self._job).encode())
            with (self._folder / "images.jsonl").open("wb") as file:
                file.writelines(map(_line, map(_facts, self._images)))
        for name, size_bytes in (("vectors", self.done.vector_bytes), ("rows.jsonl", self.done.row_bytes)):
            self._files.append(open_at(self._folder / name, size_bytes))
        if self._is_binary and not self.done.vector_bytes:
            self._write_header(self._total)
        self.checkpoint(is_last=True)

    def _check_job(self) -> None:
        """InputError that says what is not as it was when the interrupted run began."""
        before = json.loads((self._folder / "job.json").read_bytes())
        for name, now in self._job.items():
            if before.get(name) != now:
                raise InputError(
                    f"--resume: {name} was {before.get(name)!r:.80} when {self._folder} was begun, and now is "
                    f"{now!r:.80}; make it the same, or {_AGAIN}"
                )

    def _check_images(self) -> None:
        """InputError for a change among the images that are done; of the others the list is written anew."""
        path, now = self._folder / "images.jsonl", map(_facts, self._images)
        new = path.with_name(f"{path.name}.new")
        with path.open("rb") as before, new.open("wb") as file:
            for line, facts in itertools.zip_longest(
                itertools.islice(before, self.done.images), itertools.islice(now, self.done.images)
            ):
                was = None if line is None else json.loads(line)
                if was != facts:
                    told = _difference(was, facts)
                    raise InputError(f"--resume: {told} since {self._folder} was begun; {_AGAIN}")
                file.write(_line(facts))
            file.writelines(map(_line, now))
            flush(file)
        new.replace(path)

    def _is_out_of_this_job(self) -> bool:
        """Whether the finished file is there, is the one that was written, and is what this job would write."""
        try:
            finished, found = json.loads(self._job_out.read_bytes()), os.stat(self._out)
            if finished["out"] != [found.st_size, found.st_mtime_ns] or finished["job"] != self._job:
                return False
            self.done = Done(**finished["done"])
        except (OSError, ValueError, TypeError, KeyError):
            return False
        digest = hashlib.sha256()
        for facts in map(_facts, self._images):
            digest.update(_line(facts))
        if finished["images"] == digest.hexdigest():
            return True
        self.done = Done()
        return False

    def _write_header(self, rows: int) -> None:
        """numpy leaves room for the number of rows to grow, so that another number takes as many bytes."""
        layout = {"descr": "<f4", "fortran_order": False, "shape": (rows, self._dim)}
        np.lib.format.write_array_header_1_0(self._files[0], layout)

    def _count(self, kind: str, count: int) -> None:
        if kind == "text":
            self.done.texts += count
        else:
            self.done.images += count

    def _leave(self, *, is_told: bool) -> None:
        """Close the files, leave the folder, and unlock it."""
        for file in self._files:
            with contextlib.suppress(OSError):  # what was not written yet does not fit now either
                file.close()
        if self._lock is None and fcntl is not None:  # not ours
            return
        if not self._is_finished:  # else a folder of that name is another run's
            self._leave_folder(is_told=is_told)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _leave_folder(self, *, is_told: bool) -> None:
        """Keep the folder for --resume if something in it is done, and say so; else remove it."""
        done: int | None = 0  # None where that cannot be read: then nothing is removed
        with contextlib.suppress(FileNotFoundError):
            saved = (self._folder / "done.json").read_bytes()
            done = None
            with contextlib.suppress(ValueError, TypeError):
                done = Done(**json.loads(saved)).inputs
        if done == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        elif done and is_told:
            print(f"edgeclip: {self._folder}: keeps {done} of {self._total}; --resume goes on there", file=sys.stderr)

    def _raise_if_disk(self, error: BaseException | None) -> None:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise InputError(f"{self._out}: cannot be written ({error.strerror or error})") from error

    def _lock_folder(self) -> int | None:
        if fcntl is None:
            return None
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise InputError(
                f"{self._out}: another process is writing it; wait for it, or choose another name"
            ) from error
        except OSError:  # a disk that knows no locks
            pass
        return descriptor


def json_lines(kind: str, names: Sequence[str], vectors: Encoded) -> Iterator[str]:
    """A line of JSON for each input, with its vector or its multi vectors."""
    for name, vector in zip(names, vectors, strict=True):
        key, numbers = _key(is_multi=vector.ndim > 1), _numbers(vector)
        yield f'{{"{kind}": {json.dumps(name, ensure_ascii=False)}, "{key}": {numbers}}}\n'


def skipped_line(kind: str, name: str, reason: str, *, is_multi: bool = False) -> bytes:
    """The line of JSON of an input that has no vector."""
    return _line({kind: name, _key(is_multi=is_multi): None, "error": reason})


def _key(*, is_multi: bool) -> str:
    """The name of the vectors in JSON, as in Jina's API."""
    return "embeddings" if is_multi else "embedding"


def _numbers(vector: NDArray[np.float32]) -> str:
    """A vector or a matrix in JSON: the shortest decimals that give the same float32 back."""
    return f"[{', '.join(map(str, vector) if vector.ndim == 1 else map(_numbers, vector))}]"


def _line(value: object) -> bytes:
    # Of a file name that is not UTF-8 the escape that JSON has for it.
    return (json.dumps(value, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _facts(path: str) -> list[Any]:
    """What would be different of another file under that name."""
    try:
        found = os.stat(path)
        return [path, found.st_size, found.st_mtime_ns]
    except (OSError, ValueError):
        return [path, None, None]


def _difference(was: list[Any] | None, now: list[Any] | None) -> str:
    if was and now and was[0] == now[0]:
        return f"{now[0]} was changed, or removed" if now[1] is None else f"{now[0]} was changed"
    if was and (now is None or not os.path.lexists(was[0])):
        return f"{was[0]} is no longer among the images"
    return f"{now[0] if now else ''} has come to the images"


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
