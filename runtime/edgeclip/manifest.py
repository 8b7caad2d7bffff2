"""The manifest: everything a bundle knows about itself, in one JSON file.

It is written last, so a bundle that has a manifest is complete, and read first, into frozen
dataclasses that refuse what they do not know: a typo, a missing fact or a newer schema is a clear
BundleError instead of a wrong vector later. Checking the files themselves is `edgeclip.bundle.files`'s
work.
"""

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from edgeclip.errors import BundleError

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"

TowerName = Literal["text", "vision"]
TOWERS: tuple[TowerName, ...] = ("text", "vision")
Target = Literal["cpu", "cuda", "tensorrt"]
TARGETS: tuple[Target, ...] = ("cpu", "cuda", "tensorrt")
Precision = Literal["fp32", "fp16", "int8", "int4"]
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
# What a tower is held against: the checkpoint's own answers, or the graph that it was narrowed from.
Reference = Literal["fp32 checkpoint", "fp32 bundle"]
# What every bundle is measured on: `selftest` by export and quantize, `proof` by quantize.
SELFTEST_DATA, PROOF_DATA = "self-test", "made-up inputs"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One data file of the bundle, by plain name (never a path)."""

    name: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        is_plain = Path(self.name).name == self.name and self.name not in ("", ".", "..") and "\\" not in self.name
        if not is_plain or not self.name.isprintable():
            raise BundleError(f"manifest: file name {self.name!r} is not a plain name")
        if self.size_bytes < 0:
            raise BundleError(f"manifest: {self.name} has a size of {self.size_bytes} bytes")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint a bundle was made from: a Hub id with its commit, or a folder's name."""

    name: str
    revision: str | None
    weights_sha256: str
    license: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TowerFacts:
    """One graph: its file, precision, number of parameters, and how often each operator stands in it.

    `kernels` says how many linear layers are computed how, as {"int8 per row": 96, "fp32": 0}; an export's is empty.
    """

    file: str
    precision: Precision
    parameters: int
    operators: Mapping[str, int]
    kernels: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What turns a text into ids. `max_length` counts the special tokens."""

    file: str
    max_length: int
    bos_id: int
    eos_id: int
    pad_id: int
    instructions: Mapping[str, str]

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise BundleError(f"manifest: max_length is {self.max_length}, the special tokens alone are 2")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What turns an RGB image into pixels: (size_px, size_px, 3) uint8.

    `mean` and `std` are folded into the graph; they stand here for whoever wants the float tensor
    of the reference: (pixels / 255 - mean) / std.
    """

    size_px: int
    resize_mode: ResizeMode
    interpolation: Interpolation
    fill_color: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.size_px < 1 or not 0 <= self.fill_color <= 255 or min(self.std) <= 0:
            raise BundleError(
                f"manifest: images of {self.size_px} px, fill_color {self.fill_color}, std {self.std} cannot be"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalChange:
    """What became of searches: `recall` of the bundle, `reference` of the source, both from 0 to 1.

    `points` is their difference in hundredths, `low` and `high` its paired 95 % interval. `truth` says what had to be
    found: "captions", where the data say which text belongs to which image, else "the source's first answers".
    """

    metric: str
    truth: str
    queries: int
    recall: float
    reference: float
    points: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a bundle's tower answered on `data`, beside what `against` answers for it.

    `p1_cosine` is the 1st percentile of the cosines. `sqnr_db` is 10 log10 of |wanted|^2 / |found - wanted|^2 over
    all vectors, None where both are the same. `weight_bytes` is the size of the tower's files. The ratios are to the
    source bundle's, timed in one run on `machine` with `latency_input`; None where it was not timed. `retrieval` is
    of searches with this tower's vectors among the other's; None where nothing was searched.
    """

    tower: TowerName
    against: Reference
    data: str
    samples: int
    worst_cosine: float
    p1_cosine: float
    mean_cosine: float
    largest_difference: float
    sqnr_db: float | None
    weight_bytes: int
    size_ratio: float | None = None
    latency_ratio: float | None = None
    latency_input: str | None = None
    latency_samples: int | None = None
    machine: str | None = None
    retrieval: RetrievalChange | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A bundle's facts; `Manifest.read(folder)` gives them or says why not.

    `selftest` is the file of its self-test, `proof` that of its proof against the fp32 bundle: None for an export.
    """

    schema_version: int
    family: str
    source: Source
    target: Target
    opset: int
    embedding_dim: int
    matryoshka_dims: tuple[int, ...]
    text: TowerFacts
    vision: TowerFacts
    tokenizer: TokenizerFacts
    image: ImageFacts
    selftest: str
    proof: str | None
    files: tuple[FileFacts, ...]
    measured: tuple[Measurement, ...]
    built_with: Mapping[str, str]

    def __post_init__(self) -> None:
        listed = {file.name for file in self.files}
        named = {self.text.file, self.vision.file, self.tokenizer.file, self.selftest, self.proof or self.selftest}
        if missing := named - listed:
            raise BundleError(f"manifest: {', '.join(sorted(missing))} named but not among its files")
        if self.embedding_dim < 1:
            raise BundleError(f"manifest: embedding_dim is {self.embedding_dim}")

    @property
    def weight_bytes(self) -> int:
        """The size of all data files together."""
        return sum(file.size_bytes for file in self.files)

    def file(self, name: str) -> FileFacts:
        """The size and hash of the file of that name."""
        return next(file for file in self.files if file.name == name)

    def tower(self, name: TowerName) -> TowerFacts:
        """The facts of one tower."""
        return self.text if name == "text" else self.vision

    def measurement(self, tower: TowerName, against: Reference, data: str) -> Measurement | None:
        """What was measured of a tower, None where it was not; of two of one name, the bundle's own comes first."""
        found = (one for one in self.measured if (one.tower, one.against, one.data) == (tower, against, data))
        return next(found, None)

    def to_json(self) -> str:
        """The manifest as the text of manifest.json."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse manifest.json's text; BundleError for anything unknown, missing or mistyped."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of 4300 digits
            raise BundleError(f"manifest: not valid JSON ({error})") from error
        if not isinstance(document, dict):
            raise BundleError(f"manifest: wanted an object, found {_kind(document)}")
        version = document.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            advice = "upgrade edgeclip" if type(version) is int and version > SCHEMA_VERSION else "export it again"
            raise BundleError(
                f"manifest: schema_version is {version!r}, this edgeclip reads {SCHEMA_VERSION}; {advice}"
            )
        return typing.cast(Self, _parse(cls, document, "manifest"))

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Self:
        """Read `folder`'s manifest; BundleError when the folder holds no complete bundle."""
        folder = Path(folder)
        path = folder / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            for place in (folder, path):
                if target := dangling_target(place):
                    raise BundleError(f"{place}: a link to {target}; fetch or copy what it stands for") from error
            if not folder.exists():
                raise BundleError(f"{folder}: no such bundle") from error
            raise BundleError(
                f"{folder}: no {MANIFEST_NAME}, so no complete bundle; `edgeclip export` makes one"
            ) from error
        except NotADirectoryError as error:
            raise BundleError(f"{folder}: a bundle is a folder, this is a file") from error
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise BundleError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
        except ValueError as error:  # a path with a NUL in it
            raise BundleError(f"{str(folder)!r}: no path ({error})") from error
        try:
            return cls.from_json(text)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error


def dangling_target(path: Path) -> str | None:
    """For a link to what is not there its words, else None."""
    return f"{os.readlink(path)}, which is not there" if path.is_symlink() and not path.exists() else None


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), repr(value))


def _parse(kind: Any, value: object, where: str) -> object:
    """`value` as `kind`, strictly: the few shapes the manifest's dataclasses are made of."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(typing.cast(type, kind), value, where)
    if origin is Literal:
        if value not in arguments:
            raise BundleError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _parse(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise BundleError(f"{where}: wanted a list, found {_kind(value)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise BundleError(f"{where}: wanted {len(kinds)} values, found {len(value)}")
        return tuple(_parse(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise BundleError(f"{where}: wanted an object, found {_kind(value)}")
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) in (int, float):
        return _parse_float(value, where)
    if type(value) is not kind:
        raise BundleError(f"{where}: wanted {kind.__name__}, found {_kind(value)}")
    return value


def _parse_float(value: Any, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BundleError(f"{where}: wanted a finite number")
    return number


def _parse_dataclass(kind: type, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise BundleError(f"{where}: wanted an object, found {_kind(value)}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise BundleError(f"{where}: unknown {', '.join(unknown)}")
    if missing := sorted(set(hints) - set(value)):
        raise BundleError(f"{where}: {', '.join(missing)} missing")
    return kind(**{name: _parse(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
