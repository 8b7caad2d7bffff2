"""Bundles in turns, each in a process of its own: of several families, with a task, on a device, by another version.

A contender is BUNDLE[@TASK][%DEVICE][=PYTHON]: with PYTHON, as before/.venv/bin/python, it is opened by the edgeclip
of that interpreter's installation; without DEVICE on the CPU. Times are divided by the last contender's.

    transformers:CHECKPOINT        transformers' own model, eager in torch, of the sizes in that config.json with
                                   random weights, and the mean of its last hidden states
    llama.cpp:CHECKPOINT=PYTHON    llama.cpp's decoder of those sizes in Q4_K_M, of an interpreter that has
                                   llama-cpp-python and gguf; CHECKPOINT.Q4_K_M.gguf is written the first time
    openvino:BUNDLE=PYTHON         the text graph of a jina-embeddings-v4 bundle for tensorrt in OpenVINO, weights and
                                   activations in int8 by NNCF, of an interpreter that has both; BUNDLE.nncf is
                                   written the first time

All are open at once and take turns, so that other work of the machine meets all of them alike. What is timed is a
call of `encode_text` or `encode_image`, whole, from an array of the image's size. Each contender's text has exactly
the tokens by its own tokenizer, its task's prompt included.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeclip.engine.paired_timing import take_turns
from edgeclip.errors import BuildError, InputError
from edgeclip.manifest import MANIFEST_NAME as MANIFEST
from edgeclip.tables import format_bytes, format_table
from edgeclip_bench.latency.cases import make_text, parse_numbers
from edgeclip_bench.measure.documents import add_out, make_document, save
from edgeclip_bench.measure.other_processes import Spent, others_share, read_spent
from edgeclip_bench.measure.resident_memory import anonymous_bytes, peak_bytes, resident_bytes
from edgeclip_bench.rivals.run import latency_rows

BENCHMARK = "edgeclip_bench.latency.side_by_side"
_TRANSFORMERS = "transformers:"
_WANTED = "BUNDLE[@TASK][%DEVICE][=PYTHON], transformers:CHECKPOINT, llama.cpp:... or openvino:...=PYTHON"
_PROGRAMS = Path(__file__).parents[1] / "rivals"


@dataclass(frozen=True, slots=True)
class _Rival:
    """A program that takes texts as ids: its file, what it reads of a folder, and the suffix of what it writes."""

    program: str
    reads: str
    writes: str


_RIVALS = {
    "llama.cpp:": _Rival("llama_program.py", "config.json", ".Q4_K_M.gguf"),
    "openvino:": _Rival("openvino_program.py", "text.onnx", ".nncf"),
}
_MOST_ROUNDS, _LEAST_ROUNDS = 200, 5

# Both programs answer every line of stdin with one of stdout. They use nothing that an earlier version did not have.
_EDGECLIP = """if True:
    import json, sys
    import numpy as np
    from edgeclip import Encoder
    folder, task, device = sys.argv[1:]
    options = {"task": task} if task else {}
    encoder = Encoder.open(folder, device=device)
    print(json.dumps(list(getattr(encoder, "modalities", ("text", "image")))), flush=True)
    for line in sys.stdin:
        what = json.loads(line)
        if isinstance(what, str):
            vector = encoder.encode_text(what, **options)
        else:
            image = np.random.default_rng(0).integers(0, 256, (what, what, 3), np.uint8)
            vector = encoder.encode_image(image, **options)
        print(json.dumps(vector.shape), flush=True)
"""
_NATIVE = """if True:
    import json, sys
    from pathlib import Path
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoModel
    folder = Path(sys.argv[1])
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = AutoConfig.for_model(sys.argv[2], **document)
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    print(json.dumps(["text"]), flush=True)
    for line in sys.stdin:
        ids = torch.tensor([tokenizer.encode(json.loads(line)).ids])
        with torch.inference_mode():
            hidden = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            vector = torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0]
        print(json.dumps(vector.numpy().shape), flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A bundle as it is opened: with a task, by an interpreter; `native` is transformers' model of a checkpoint."""

    name: str
    folder: Path
    task: str | None = None
    device: str = "cpu"
    python: str = sys.executable
    native: str | None = None

    @classmethod
    def parse(cls, words: str) -> Self:
        """One of the forms above; InputError where there is no such folder."""
        if words.startswith(_TRANSFORMERS):
            from edgeclip_export.opening import open_checkpoint

            folder = Path(words.removeprefix(_TRANSFORMERS))
            opened = open_checkpoint(folder)
            # transformers' name of the model; the official layouts name none.
            native = str(opened.checkpoint.config.get("model_type") or opened.family.name)
            return cls(name=f"{_TRANSFORMERS}{folder.name}", folder=folder, native=native)
        rival = next((name for name in _RIVALS if words.startswith(name)), "")
        path, _, python = words.removeprefix(rival).partition("=")
        if rival:
            folder, reads = Path(path), _RIVALS[rival].reads
            if not (folder / reads).is_file() or not python:
                raise InputError(f"{words}: wanted {rival}FOLDER=PYTHON, a folder with {reads}")
            return cls(name=f"{rival}{folder.name}", folder=folder, python=python, native=rival)
        path, _, device = path.partition("%") if not Path(path).is_dir() else (path, "", "")
        path, _, task = path.partition("@") if not Path(path).is_dir() else (path, "", "")
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            raise InputError(f"{words}: {folder} is no bundle; wanted {_WANTED}")
        name = "".join((folder.absolute().name, f"@{task}" if task else "", f"%{device}" if device else ""))
        return cls(
            name=name, folder=folder, task=task or None, device=device or "cpu", python=python or sys.executable
        )

    @property
    def command(self) -> list[str]:
        """The command that runs it."""
        if rival := _RIVALS.get(self.native or ""):
            written = self.folder.with_name(f"{self.folder.name}{rival.writes}")
            return [self.python, str(_PROGRAMS / rival.program), str(self.folder / rival.reads), str(written)]
        if self.native:
            return [self.python, "-c", _NATIVE, str(self.folder), self.native]
        return [self.python, "-c", _EDGECLIP, str(self.folder), self.task or "", self.device]

    def text(self, tokens: int) -> str:
        """A text of so many tokens, the task's prompt included; for another runtime's program the ids themselves."""
        if self.native in _RIVALS:
            return " ".join(str(100 + index) for index in range(tokens))
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        prompt = ""
        if self.task:
            tasks = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))["tasks"]
            if self.task not in tasks:
                raise InputError(f"{self.name}: the tasks of the bundle are {', '.join(tasks) or 'none'}")
            prompt = tasks[self.task]["prompt"]
        return make_text(tokens, lambda text: len(tokenizer.encode(f"{prompt}{text}").ids))


class _Running:
    """A contender's process, which answers one input at a time."""

    def __init__(self, contender: Contender, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.contender, self._process = contender, process
        self._asked, self._answers = process.stdin, process.stdout
        self.modalities: list[str] = self._answer()

    def encode(self, what: str | int) -> object:
        """Encode a text, or an image of so many pixels a side; return when the vector is there."""
        with contextlib.suppress(BrokenPipeError):  # what its process died of is on stderr
            self._asked.write(f"{json.dumps(what)}\n".encode())
        return self._answer()

    def memory(self) -> dict[str, int]:
        """The process's memory now, and its peak since it began."""
        process = self._process.pid
        return {
            "resident_bytes": resident_bytes(process),
            "anonymous_bytes": anonymous_bytes(process),
            "peak_bytes": peak_bytes(process),
        }

    def _answer(self) -> Any:
        if not (line := self._answers.readline()):
            raise BuildError(f"{self.contender.name}: its process ended with status {self._process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def _run(contender: Contender) -> Iterator[_Running]:
    """Start a contender's process, and end it; pipes without buffers, so that none is left to write to a dead one."""
    pipe = subprocess.PIPE
    with subprocess.Popen(contender.command, bufsize=0, stdin=pipe, stdout=pipe) as process:
        yield _Running(contender, process)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument(
        "contenders", nargs="+", metavar="CONTENDER", help="BUNDLE[@TASK][%%DEVICE][=PYTHON], transformers:DIR"
    )
    parser.add_argument("--tokens", metavar="N", default="16,512", help="lengths of the texts (16,512)")
    parser.add_argument("--image-px", metavar="N", type=int, default=0, help="side of the image (no image)")
    parser.add_argument("--seconds", metavar="S", type=float, default=30.0, help="for each case, about (30)")
    parser.add_argument("--starts", metavar="N", type=int, default=0, help="processes started for a first text (0)")
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    contenders = [Contender.parse(words) for words in options.contenders]
    if len({contender.name for contender in contenders}) < len(contenders):
        raise InputError("two contenders have the same name; rename the folder of one")
    report = measure(
        contenders,
        tokens=parse_numbers("--tokens", options.tokens),
        image_px=options.image_px,
        seconds=options.seconds,
        starts=options.starts,
    )
    save(report, options.out)
    print(_render(report))
    return 0


def measure(
    contenders: Sequence[Contender], *, tokens: Sequence[int], image_px: int, seconds: float, starts: int
) -> dict[str, Any]:
    """The document: times of every case, of first texts, and memory after the texts and after the image."""
    spent = _spent()
    texts = {contender.name: {count: contender.text(count) for count in tokens} for contender in contenders}
    memory: dict[str, dict[str, dict[str, int]]] = {contender.name: {} for contender in contenders}
    rows: list[dict[str, Any]] = []
    if starts:
        rows += _take_starts(contenders, {name: its[min(tokens)] for name, its in texts.items()}, starts)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_run(contender)) for contender in contenders]
        for count in tokens:
            works = {one.contender.name: partial(one.encode, texts[one.contender.name][count]) for one in running}
            rows += _take_turns(f"text, {count} tokens", works, seconds)
        seeing = [one for one in running if image_px and "image" in one.modalities]
        for one in running:
            memory[one.contender.name]["texts"] = one.memory()
        if seeing:
            images = {one.contender.name: partial(one.encode, image_px) for one in seeing}
            rows += _take_turns(f"image, {image_px} px", images, seconds)
        for one in seeing:
            memory[one.contender.name]["texts and image"] = one.memory()
    share = others_share(spent, _spent(), os.cpu_count() or 1)
    return make_document(
        BENCHMARK,
        {
            "contenders": [
                {
                    "name": one.name,
                    "task": one.task,
                    "device": one.device,
                    "is_other_installation": one.python != sys.executable,
                }
                for one in contenders
            ],
            "others_share": round(share, 4),
            "latencies": rows,
            "memory": memory,
        },
    )


def _spent() -> Spent:
    """What this process and the contenders that have ended took of the processors, beside all that was taken."""
    spent, own = read_spent(), psutil.Process().cpu_times()
    return replace(spent, own_s=spent.own_s + own.children_user + own.children_system)


def _take_turns(case: str, works: Mapping[str, Callable[[], object]], seconds: float) -> list[dict[str, Any]]:
    for work in works.values():
        work()
    return _rows(case, take_turns(works, _MOST_ROUNDS, seconds=seconds, least=_LEAST_ROUNDS, warm_up=1))


def _take_starts(contenders: Sequence[Contender], texts: Mapping[str, str], rounds: int) -> list[dict[str, Any]]:
    """From the start of a process to its first text vector; the round before the first reads the files."""
    with contextlib.ExitStack() as stack:

        def start(contender: Contender) -> None:
            stack.enter_context(_run(contender)).encode(texts[contender.name])

        works = {contender.name: partial(start, contender) for contender in contenders}
        # A process ends outside of what is timed.
        times = take_turns(works, rounds, warm_up=1, is_alone=False, on_round=stack.close)
    return _rows("start to first text", times)


def _rows(case: str, seconds: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    times = {name: its * 1000 for name, its in seconds.items()}
    *_, last = times.values()
    return latency_rows(case, times, to_last=last)


def _render(report: Mapping[str, Any]) -> str:
    """The two tables: times, then memory."""
    times = [
        (
            row["case"],
            row["contender"],
            f"{row['median_ms']:.1f}",
            f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
            str(row["samples"]),
        )
        for row in report["latencies"]
        for ratio in (row["to_last"],)
    ]
    memory = [
        (name, after, *(format_bytes(found[kind]) for kind in ("resident_bytes", "anonymous_bytes", "peak_bytes")))
        for name, its in report["memory"].items()
        for after, found in its.items()
    ]
    return "\n\n".join(
        (
            format_table(("in turns", "", "median ms", "to the last", "rounds"), times),
            format_table(("memory", "after", "resident", "anonymous", "peak"), memory),
        )
    )
