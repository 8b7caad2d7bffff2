"""The cases of `edgeclip bench`, and the inputs that it measures with.

Inputs are made up: the meaning of a text or picture costs no time; its length and size do.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeclip.errors import InputError, MissingExtraError
from edgeclip.families.tasks import list_tasks
from edgeclip.host.installation import install_command
from edgeclip.manifest import MODALITIES, Manifest, Modality
from edgeclip_bench.latency.scenarios import MULTI_STREAM_SAMPLES, SCENARIOS, Scenario
from edgeclip_bench.measure.pictures import encode_file, made_up_picture

# The opening and the closing token, and one between them.
LEAST_TOKENS = 3
LARGEST_PX = 20_000
_WORDS = ("a", "the", "red", "of", "and", "in", "on", "to", "x", "1", "2", "3", "is", "it", "we", "no", "so")
# The number of words that texts are drawn from.
_WORDS_WANTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement of a text of `tokens` or an image of `image_px` a side, with `batch` samples a query."""

    modality: Modality
    scenario: Scenario
    batch: int
    threads: int
    tokens: int | None = None
    image_px: int | None = None
    task: str | None = None

    @property
    def subject(self) -> str:
        """The sample, in words."""
        return f"text, {self.tokens} tokens" if self.modality == "text" else f"image, {self.image_px} px"

    @property
    def kind(self) -> str:
        """The sample in the form that follows "one" or a number in a sentence."""
        return f"text of {self.tokens} tokens" if self.modality == "text" else f"image of {self.image_px} px"

    @property
    def name(self) -> str:
        """The sample and the number per query, as they stand in a table."""
        task = f", {self.task}" if self.task else ""
        many = f", batch {self.batch}" if self.batch > 1 and self.scenario != "multi-stream" else ""
        return f"{self.subject}{task}{many}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The requested measurements; None are all modalities, `Encoder.open`'s threads; InputError if impossible."""

    modalities: tuple[Modality, ...] | None = None
    scenarios: tuple[Scenario, ...] = ("single-stream", "offline")
    batches: tuple[int, ...] = (1,)
    tokens: tuple[int, ...] = (16, 64, 512)
    image_px: tuple[int, ...] = (1080,)
    threads: tuple[int, ...] | None = None
    seconds: float = 3.0
    p99_ms: float | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        for option, values, least, most in (
            ("--batch", self.batches, 1, 4096),
            ("--tokens", self.tokens, LEAST_TOKENS, None),
            ("--image-px", self.image_px, 1, LARGEST_PX),
            ("--threads", self.threads or (1,), 1, 1024),
        ):
            for value in values:
                if value < least or (most and value > most):
                    wanted = f"from {least} to {most}" if most else f"{least} or more"
                    raise InputError(f"{option} {value}: wanted {wanted}")
        if not 0 < self.seconds <= 3600:
            raise InputError(f"--seconds {self.seconds:g}: wanted more than 0 and at most 3600")
        if "server" in self.scenarios and self.p99_ms is None:
            raise InputError("--scenario server: give --p99-ms, the bound that p99 has to keep")
        if self.p99_ms is not None and not 0 < self.p99_ms < float("inf"):
            raise InputError(f"--p99-ms {self.p99_ms:g}: wanted a positive number of milliseconds")


def cases_for(
    plan: Plan, threads: int, modalities: Sequence[Modality] = MODALITIES, image_tasks: Sequence[str] = ()
) -> Iterator[Case]:
    """The cases of a bundle that takes `modalities`: by scenario, texts before images, short before long.

    Images have the plan's task where it is one of `image_tasks`. A query of multi-stream has eight samples, and
    offline sends all at once, so `batches` is for the others.
    """
    for scenario in (one for one in SCENARIOS if one in plan.scenarios):
        fixed = {"multi-stream": (MULTI_STREAM_SAMPLES,), "offline": (1,)}
        for modality in (one for one in modalities if one in (plan.modalities or modalities)):
            for size in sorted(set(plan.tokens if modality == "text" else plan.image_px)):
                for batch in fixed.get(scenario, tuple(sorted(set(plan.batches)))):
                    yield Case(
                        modality=modality,
                        scenario=scenario,
                        batch=batch,
                        threads=threads,
                        tokens=size if modality == "text" else None,
                        image_px=size if modality == "image" else None,
                        task=plan.task if modality == "text" or plan.task in image_tasks else None,
                    )


def check_plan(plan: Plan, manifest: Manifest) -> None:
    """InputError for a modality or a task that the bundle does not have, and for texts that the model would cut."""
    for modality in plan.modalities or ():
        manifest.check_modality(modality)
    measured = [modality for modality in manifest.modalities if modality in (plan.modalities or MODALITIES)]
    known = tuple(dict.fromkeys(task for modality in measured for task in manifest.tasks_of(modality)))
    if plan.task is not None and not known and "text" not in measured:
        raise InputError(f"--task {plan.task}: tasks are of texts, and none are measured")
    if "text" in measured and (longest := max(plan.tokens)) > (limit := manifest.need_text().max_length):
        raise InputError(f"--tokens {longest}: the model takes at most {limit}")
    if plan.task is None and manifest.task_required:
        raise InputError(f"{manifest.source.name} needs a task: give --task, one of {list_tasks(known)}")
    if plan.task is not None and plan.task not in known:
        names = list_tasks(known, plan.task) or "none, for this bundle has none"
        raise InputError(f"--task {plan.task}: wanted one of {names}")


def make_text(tokens: int, count: Callable[[str], int]) -> str:
    """A text of so many tokens by `count`, with the special ones; InputError where no characters make one."""
    empty = count("")
    if tokens < empty:
        raise InputError(f"--tokens {tokens}: special tokens and the prompt of the task alone are {empty}")
    single = [word for word in _WORDS if count(word) == empty + 1 and count(f"{word} {word}") == empty + 2]
    for words in (single[:_WORDS_WANTED], single[:1]):
        text = " ".join(words[place % len(words)] for place in range(tokens - empty)) if words else ""
        if count(text) == tokens:
            return text
    text = ""  # of a tokenizer of made-up pieces, which knows no word
    for letter in itertools.islice(itertools.cycle("the sea and sand "), 8 * tokens):
        if count(text) == tokens:
            return text
        text += letter
    raise InputError(f"no text of {tokens} tokens could be made up for this tokenizer; try another --tokens")


def make_image(folder: Path, size_px: int) -> Path:
    """Write a square JPEG in `folder`, which compresses about as a photo does; MissingExtraError without Pillow."""
    path = folder / f"{size_px}.jpg"
    if path.exists():
        return path
    try:
        picture = made_up_picture((size_px, size_px), np.random.default_rng(size_px), blotch_px=64, grain=6)
    except ImportError as error:
        raise MissingExtraError(
            f"measuring images needs Pillow: `{install_command('images')}`, or give --modality text"
        ) from error
    path.write_bytes(encode_file(picture))
    return path


def offline_size(query_s: float, run_s: float) -> int:
    """The number of samples in one offline run of about `run_s`, from the time of one alone: 3 to 2048."""
    return int(min(2048, max(3, round(run_s / max(query_s, 1e-9)))))


def parse_numbers(option: str, words: str) -> tuple[int, ...]:
    """ "1,8" -> (1, 8); InputError for anything else, by the option's name."""
    try:
        return tuple(dict.fromkeys(int(word) for word in words.split(",")))
    except ValueError as error:
        raise InputError(f"{option} {words!r}: wanted whole numbers with commas between them, as 1,8") from error


def parse_scenarios(words: str) -> tuple[Scenario, ...]:
    """ "server,offline" -> both; InputError for an unknown scenario."""
    chosen = [word.strip() for word in words.split(",")]
    if unknown := [word for word in chosen if word not in SCENARIOS]:
        raise InputError(f"--scenario {', '.join(unknown)}: wanted some of {', '.join(SCENARIOS)}")
    return tuple(scenario for scenario in SCENARIOS if scenario in chosen)
