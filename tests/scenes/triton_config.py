"""Triton's config.pbtxt, read strictly: for tests of what `edgeclip export-triton` writes."""

import re
from typing import Any

# The fields of inference.ModelConfig that are used: Triton refuses a name it does not know.
FIELDS = {
    "": "name backend max_batch_size input output version_policy instance_group dynamic_batching model_warmup "
    "parameters optimization",
    "input": "name data_type dims",
    "output": "name data_type dims",
    "version_policy": "latest",
    "latest": "num_versions",
    "instance_group": "kind count",
    "dynamic_batching": "max_queue_delay_microseconds default_queue_policy",
    "default_queue_policy": "timeout_action default_timeout_microseconds max_queue_size",
    "model_warmup": "name batch_size inputs",
    "inputs": "key value",
    "parameters": "key value",
    "value": "string_value data_type dims zero_data",
    "optimization": "execution_accelerators",
    "execution_accelerators": "gpu_execution_accelerator",
    "gpu_execution_accelerator": "name parameters",
}
REPEATED = {"input", "output", "instance_group", "model_warmup", "inputs", "parameters", "gpu_execution_accelerator"}
TOKEN = re.compile(r'\s*([{}\[\],:]|"[^"\\\n]*"|[\w.-]+)')


def parse(text: str) -> dict[str, Any]:
    """Protobuf's text format, as far as config.pbtxt goes; anything else fails."""
    tokens = []
    text = text.rstrip()
    while text:
        match = TOKEN.match(text)
        assert match, text[:40]
        tokens.append(match[1])
        text = text[match.end() :]
    document = parse_message(tokens, "")
    assert tokens == []
    return document


def parse_message(tokens: list[str], field: str) -> dict[str, Any]:
    message: dict[str, Any] = {}
    while tokens and tokens[0] != "}":
        name = tokens.pop(0)
        assert name in FIELDS[field].split(), f"{field}.{name}"
        if tokens[0] == ":":
            tokens.pop(0)
            assert tokens[0] != "{"
        values = parse_list(tokens, name) if tokens[0] == "[" else [parse_value(tokens, name)]
        if name in REPEATED:
            message.setdefault(name, []).extend(values)
        else:
            assert name not in message, f"{name} twice"
            message[name] = values if name == "dims" else values[0]
    return message


def parse_list(tokens: list[str], name: str) -> list[Any]:
    assert name in REPEATED or name == "dims"
    tokens.pop(0)
    values = [parse_value(tokens, name)]
    while tokens[0] == ",":
        tokens.pop(0)
        values.append(parse_value(tokens, name))
    assert tokens.pop(0) == "]"
    return values


def parse_value(tokens: list[str], name: str) -> Any:
    token = tokens.pop(0)
    if token == "{":
        message = parse_message(tokens, name)
        assert tokens.pop(0) == "}"
        return message
    if token.startswith('"'):
        return token[1:-1]
    return int(token) if re.fullmatch(r"-?\d+", token) else token


def pairs(entries: list[dict[str, Any]]) -> dict[str, str]:
    values = {entry["key"]: entry["value"] for entry in entries}
    assert len(values) == len(entries)
    return {key: value["string_value"] if isinstance(value, dict) else value for key, value in values.items()}
