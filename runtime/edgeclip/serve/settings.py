"""The service's settings: one frozen dataclass, from flags and EDGECLIP_* variables.

A flag wins over its variable, a variable over the default. Every setting is one row of OPTIONS, from which the
command line, the variables and `edgeclip serve --print-config` are made, so none can know one that the others do not.
Nothing is read when the module is loaded.
"""

import argparse
import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from edgeclip.errors import InputError
from edgeclip.manifest import MODALITIES, Modality
from edgeclip.serve.http.access_log import LogFormat
from edgeclip.serve.images.url_hosts import parse_url_hosts
from edgeclip.serve.queue.thread_priority import LEAST_SHARE, MOST_SHARE

LogLevel = Literal["debug", "info", "warning", "error"]
PREFIX = "EDGECLIP_"
# Kubernetes sets these beside a Service X: X_SERVICE_HOST, X_SERVICE_PORT, X_PORT=tcp://10.0.0.1:80, and more.
_OF_KUBERNETES = re.compile(r"(\w+?)_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_LINK = re.compile(r"(tcp|udp|sctp)://[^/\s]+:\d+")
# The prefix as somebody may write it: EDGE_CLIP_PORT, EDGECLIPPORT, EDGE-CLIP_PORT.
_LIKE_PREFIX = re.compile(r"EDGE[_-]?CLIP[_-]?", re.IGNORECASE)
# Longer than any key that is handed out, shorter than a guess that takes an hour.
_LEAST_KEY_CHARACTERS = 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `edgeclip serve` runs with; InputError for what cannot be.

    With None the bundle or the machine decides: the name of the checkpoint, all threads that may be used, a batch
    by the device. `request_timeout_s` holds for the whole of a request: max_images at once may be more than a slow
    device does in it, and are refused from the moment that has shown.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int | None = None
    modality: Modality | None = None
    device: str = "auto"
    threads: int | None = None
    prepack: bool = False
    model_name: str | None = None
    is_model_checked: bool = False
    allow_token_ids: bool = False
    allow_urls: bool = False
    allow_http_urls: bool = False
    url_hosts: tuple[str, ...] = ()
    api_keys_file: Path | None = None
    api_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    root_path: str = ""
    max_body_bytes: int = 64 << 20
    max_values: int = 1_000_000
    max_pending_bytes: int = 256 << 20
    max_items: int = 2048
    max_images: int = 128
    max_length: int | None = None
    max_pixels: int | None = None
    max_vectors: int = 65_536
    max_text_chars: int = 262_144
    max_request_chars: int = 8 << 20
    max_image_bytes: int = 20 << 20
    max_image_pixels: int = 50_000_000
    max_decode_bytes: int = 1 << 30
    max_queued_texts: int = 8192
    max_queued_images: int = 256
    max_batch: int | None = None
    max_connections: int = 4096
    decode_threads: int = 2
    image_share: float = 0.25
    request_timeout_s: float = 300.0
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    fetch_timeout_s: float = 10.0
    max_redirects: int = 3
    wedged_s: float = 120.0
    ready_s: float = 10.0
    metrics_s: float = 1.0
    shutdown_timeout_s: float = 30.0
    log_level: LogLevel = "info"
    access_log: bool = False
    access_log_format: LogFormat = "text"
    access_log_clients: bool = False
    request_id: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"port is {self.port}, wanted 0 (any free one) to 65535")
        if self.metrics_port is not None and (not 0 < self.metrics_port <= 65535 or self.metrics_port == self.port):
            raise InputError(f"metrics_port is {self.metrics_port}, wanted 1 to 65535 and another than port")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, wanted 1 or more")
        for name in _SECONDS:
            if not 0 < getattr(self, name) < 86_400:
                raise InputError(f"{name} is {getattr(self, name)}, wanted more than 0 and less than a day")
        if not LEAST_SHARE <= self.image_share <= MOST_SHARE:
            raise InputError(f"image_share is {self.image_share}, wanted {LEAST_SHARE} to {MOST_SHARE}")
        if self.max_redirects < 0:
            raise InputError(f"max_redirects is {self.max_redirects}, wanted 0 or more")
        if self.max_images > self.max_queued_images or self.max_items > self.max_queued_texts:
            raise InputError(
                "a request must fit into the queue: max_images at most max_queued_images, max_items at most "
                f"max_queued_texts; found {self.max_images} and {self.max_queued_images}, "
                f"{self.max_items} and {self.max_queued_texts}"
            )
        if self.max_text_chars > self.max_request_chars:
            raise InputError(
                f"max_text_chars is {self.max_text_chars}, more than max_request_chars, {self.max_request_chars}"
            )
        if self.max_body_bytes > self.max_pending_bytes:
            raise InputError(
                f"max_body_bytes is {self.max_body_bytes}, more than max_pending_bytes, {self.max_pending_bytes}"
            )
        if self.allow_http_urls and not self.allow_urls:
            raise InputError("allow_http_urls is set without allow_urls; set both")
        parse_url_hosts(self.url_hosts)
        if any(len(key) < _LEAST_KEY_CHARACTERS for key in self.api_keys):
            raise InputError(f"an API key has less than {_LEAST_KEY_CHARACTERS} characters; take a longer one")
        if not all(key.isascii() and key.isprintable() for key in self.api_keys):
            raise InputError("an API key has characters that no header carries safely; take letters, digits, - and _")
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise InputError(f"cors origin {origin!r}: wanted https://host[:port], or *")
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", self.root_path):
            raise InputError(f"root path {self.root_path!r}: wanted /name or /name/name, without a slash at the end")

    @property
    def fetches_urls(self) -> bool:
        """Whether images are fetched by URL, from anywhere or from listed hosts alone."""
        return self.allow_urls or bool(self.url_hosts)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


_AT_LEAST_ONE = (
    *("threads", "max_body_bytes", "max_values", "max_pending_bytes", "max_items", "max_images", "max_text_chars"),
    *("max_request_chars", "max_image_bytes", "max_image_pixels", "max_queued_texts", "max_queued_images"),
    *(
        "max_length",
        "max_pixels",
        "max_vectors",
        "max_decode_bytes",
        "max_batch",
        "max_connections",
        "decode_threads",
    ),
)
_SECONDS = (
    *("request_timeout_s", "head_timeout_s", "body_timeout_s", "fetch_timeout_s"),
    *("wedged_s", "ready_s", "metrics_s", "shutdown_timeout_s"),
)


def _parse_bool(text: str) -> bool:
    meaning = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    try:
        return meaning[text.lower()]
    except KeyError as error:
        raise ValueError("true or false") from error


def _parse_int(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError("a whole number")
    return int(text)


def _parse_seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise ValueError("seconds")
    return float(text)


def _parse_share(text: str) -> float:
    if not re.fullmatch(r"[0-9]?\.[0-9]{1,9}", text):
        raise ValueError("a share, as 0.25")
    return float(text)


def _parse_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return parse


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting: its field, its flag and metavar (None for a flag without value, or for none), how it is read."""

    field: str
    flag: str | None
    parse: Callable[[str], Any]
    metavar: str | None
    help: str

    @property
    def variable(self) -> str:
        """The environment variable: EDGECLIP_ and the flag's name, or the field's where there is no flag."""
        name = "api_keys_file" if self.field == "api_keys_file" else (self.flag or self.field).strip("-")
        return PREFIX + name.replace("-", "_").upper()

    @property
    def default(self) -> Any:
        """The default, None where there is none."""
        field = next(field for field in dataclasses.fields(Settings) if field.name == self.field)
        return None if field.default is dataclasses.MISSING else field.default


def _option(field: str, flag: str | None, parse: Callable[[str], Any], metavar: str | None, text: str) -> Option:
    return Option(field=field, flag=flag, parse=parse, metavar=metavar, help=text)


_text: Callable[[str], Any] = str
OPTIONS = (
    _option("bundle", None, Path, None, "the folder of a bundle"),
    _option("host", "--host", _text, "H", "the address to listen on; 0.0.0.0 is the whole network"),
    _option("port", "--port", _parse_int, "N", "the port"),
    _option("metrics_port", "--metrics-port", _parse_int, "N", "a port for /metrics alone, which --port then lacks"),
    _option(
        "modality", "--modality", _one_of(MODALITIES), "M", "text or image: serve that alone, load no other graph"
    ),
    _option("device", "--device", _text, "D", "auto, cpu, cuda[:n], tensorrt[:n] or openvino[:CPU|GPU|NPU]"),
    _option(
        "threads", "--threads", _parse_int, "N", "threads of a graph (all that may be used; 1 where graphs are tiny)"
    ),
    _option(
        "prepack",
        "--prepack",
        _parse_bool,
        None,
        "pack weights for this CPU first, once: less memory (docs/memory.md)",
    ),
    _option("model_name", "--model-name", _text, "NAME", "what /v1/models says (the checkpoint's name)"),
    _option("is_model_checked", "--check-model", _parse_bool, None, "404 for a request for any other model"),
    _option("allow_token_ids", "--token-ids", _parse_bool, None, "take token ids of this model's tokenizer"),
    _option("allow_urls", "--allow-urls", _parse_bool, None, "fetch images from https URLs"),
    _option("allow_http_urls", "--allow-http-urls", _parse_bool, None, "fetch from http URLs too"),
    _option("url_hosts", "--url-hosts", _parse_list, "HOST", "fetch from these, private ones too (docs/serving.md)"),
    _option(
        "api_keys_file",
        "--api-keys",
        Path,
        "FILE",
        "a file of API keys, one a line; # after a space is a comment",
    ),
    _option("api_keys", None, _parse_list, None, "API keys, separated by commas"),
    _option("cors_origins", "--cors", _parse_list, "ORIGIN", "let pages of this origin call; may be repeated"),
    _option("root_path", "--root-path", _text, "PATH", "a prefix of paths that a proxy does not strip, as /embed"),
    _option("max_body_bytes", "--max-body-bytes", _parse_int, "N", "of a request"),
    _option("max_values", "--max-values", _parse_int, "N", "commas and brackets of a request"),
    _option("max_pending_bytes", "--max-pending-bytes", _parse_int, "N", "of all requests in progress"),
    _option("max_items", "--max-items", _parse_int, "N", "inputs of a request"),
    _option("max_images", "--max-images", _parse_int, "N", "images among them"),
    _option("max_length", "--max-length", _parse_int, "N", "tokens of one text (what the model takes)"),
    _option(
        "max_pixels", "--max-pixels", _parse_int, "N", "that an image of any size is scaled down to (the model's)"
    ),
    _option("max_vectors", "--max-vectors", _parse_int, "N", "of an answer that has one for each token"),
    _option("max_text_chars", "--max-text-chars", _parse_int, "N", "of one text, as NFKC writes it"),
    _option("max_request_chars", "--max-request-chars", _parse_int, "N", "of a request's texts together"),
    _option("max_image_bytes", "--max-image-bytes", _parse_int, "N", "of one image's file"),
    _option("max_image_pixels", "--max-image-pixels", _parse_int, "N", "of one image"),
    _option("max_decode_bytes", "--max-decode-bytes", _parse_int, "N", "of memory for what is decoded at once"),
    _option("max_queued_texts", "--max-queued-texts", _parse_int, "N", "waiting; beyond it 429"),
    _option("max_queued_images", "--max-queued-images", _parse_int, "N", "in progress; beyond it 429"),
    _option(
        "max_batch", "--max-batch", _parse_int, "N", "inputs that a graph takes at once, if less than the device's"
    ),
    _option("max_connections", "--max-connections", _parse_int, "N", "at once; beyond it 503"),
    _option("decode_threads", "--decode-threads", _parse_int, "N", "threads that decode images"),
    _option("image_share", "--image-share", _parse_share, "F", "of the cores, for images and long texts (Linux)"),
    _option("request_timeout_s", "--request-timeout-s", _parse_seconds, "S", "from the body to the answer"),
    _option("head_timeout_s", "--head-timeout-s", _parse_seconds, "S", "for a client to send a request's head"),
    _option("body_timeout_s", "--body-timeout-s", _parse_seconds, "S", "for a client to send a request's body"),
    _option("fetch_timeout_s", "--fetch-timeout-s", _parse_seconds, "S", "for one URL"),
    _option("max_redirects", "--max-redirects", _parse_int, "N", "that are followed from a URL"),
    _option("wedged_s", "--wedged-s", _parse_seconds, "S", "a batch that runs longer turns readiness red"),
    _option("ready_s", "--ready-s", _parse_seconds, "S", "how long an answer of /health/ready holds"),
    _option("metrics_s", "--metrics-s", _parse_seconds, "S", "how long an answer of /metrics holds"),
    _option("shutdown_timeout_s", "--shutdown-timeout-s", _parse_seconds, "S", "to finish what was accepted"),
    _option(
        "log_level",
        "--log-level",
        _one_of(get_args(LogLevel)),
        "L",
        "debug, info, warning or error; none logs inputs",
    ),
    _option("access_log", "--access-log", _parse_bool, None, "a line on stderr for each request, without its inputs"),
    _option("access_log_format", "--access-log-format", _one_of(get_args(LogFormat)), "F", "text or json"),
    _option("access_log_clients", "--access-log-clients", _parse_bool, None, "clients' addresses in it"),
    _option("request_id", "--request-id", _parse_bool, None, "X-Request-ID in every answer; --access-log has it too"),
)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags of every option, and BUNDLE; what is not given is not in the namespace's settings."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help=f"the folder of a bundle, or ${PREFIX}BUNDLE")
    for option in OPTIONS:
        if option.flag is None:
            continue
        default = "" if option.default in (None, (), False) else f" ({option.default})"
        if option.metavar is None:
            parser.add_argument(option.flag, dest=option.field, action="store_const", const="true", help=option.help)
        else:
            action = "append" if option.parse is _parse_list else "store"
            text = option.help + default
            parser.add_argument(option.flag, dest=option.field, action=action, metavar=option.metavar, help=text)
    parser.add_argument("--print-config", action="store_true", help="print every setting and end")


def read_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], *, needs_bundle: bool = True
) -> tuple[Settings, dict[str, str]]:
    """The settings, and of each field where it is from: a flag, a variable or "default".

    `flags` has a str (or a list of them) for each flag that was given, None for the others. InputError names the
    flag or variable that cannot be read.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in OPTIONS:
        given = flags.get(option.field)
        source = option.flag or "BUNDLE"
        if given is None:
            given, source = environment.get(option.variable), option.variable
        if given is None or given == "":
            sources[option.field] = "default"
            continue
        text = ",".join(given) if isinstance(given, list) else given
        try:
            values[option.field] = option.parse(text)
        except ValueError as error:
            shown = "" if option.field == "api_keys" else f" {text[:60]!r}"
            raise InputError(f"{source}: found{shown}, wanted {error}{_advice(text)}") from error
        sources[option.field] = source
    if "bundle" not in values:
        if needs_bundle:
            raise InputError(f"no bundle: give its folder, or set {PREFIX}BUNDLE")
        values["bundle"] = Path("-")
    return Settings(**values), sources


def _advice(text: str) -> str:
    """Kubernetes sets EDGECLIP_PORT=tcp://... in every pod beside a Service that is called edgeclip."""
    return "; Kubernetes set this for a Service: `enableServiceLinks: false`" if text.startswith("tcp://") else ""


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each EDGECLIP_ variable that is no setting, with the nearest one; its value is not shown.

    So is one whose prefix is misspelt, where its ending is a setting's. What Kubernetes sets in every pod beside a
    Service whose name begins with edgeclip is left out.
    """
    known = {option.variable for option in OPTIONS}
    endings = [each.removeprefix(PREFIX) for each in known]
    told = []
    for name in sorted(environment):
        prefix = _LIKE_PREFIX.match(name)
        if prefix is None or name in known or _is_of_kubernetes(name, environment):
            continue
        near = get_close_matches(name[prefix.end() :].upper(), endings, 1, cutoff=0.5 if prefix[0] == PREFIX else 0.9)
        if not near and prefix[0].upper() != PREFIX:  # another program's, as EDGECLIPPER_HOME
            continue
        meant = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        told.append(f"the variable {name[:60]!a} is no setting and changes nothing{meant}")
    return told


def _is_of_kubernetes(name: str, environment: Mapping[str, str]) -> bool:
    """Whether Kubernetes set it for a Service: its value or the others of the same Service show it."""
    match = _OF_KUBERNETES.fullmatch(name)
    if match is None:
        return False
    service = match[1]
    is_service = f"{service}_SERVICE_HOST" in environment and f"{service}_SERVICE_PORT" in environment
    return is_service or _LINK.fullmatch(environment.get(f"{service}_PORT", "")) is not None


def describe_settings(settings: Settings, sources: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """Rows of variable, flag, value and source; of keys only their number."""
    rows = []
    for option in OPTIONS:
        value = getattr(settings, option.field)
        shown = f"{len(value)} keys" if option.field == "api_keys" else _shown(value)
        rows.append((option.variable, option.flag or "", shown, sources[option.field]))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value is None else str(value)
