"""Settings: flags over variables over defaults, every one of them shown, nothing that cannot be."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from edgeclip.errors import InputError
from edgeclip.serve.http.api_keys import KeyRing, read_keys
from edgeclip.serve.settings import (
    OPTIONS,
    Settings,
    add_settings,
    describe_settings,
    read_settings,
    unknown_variables,
)
from tests.scenes.command import Captured, run, run_process


def parse(*arguments: str, **environment: str) -> tuple[Settings, dict[str, str]]:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return read_settings(vars(parser.parse_args(arguments)), environment)


def test_a_flag_wins_over_its_variable_and_that_over_the_default() -> None:
    settings, sources = parse("b", "--port", "1", EDGECLIP_PORT="2", EDGECLIP_HOST="::1")
    assert (settings.port, settings.host, settings.max_items) == (1, "::1", 2048)
    assert (sources["port"], sources["host"], sources["max_items"]) == ("--port", "EDGECLIP_HOST", "default")


def test_every_field_is_an_option_and_is_shown() -> None:
    assert [option.field for option in OPTIONS] == [field.name for field in dataclasses.fields(Settings)]
    rows = describe_settings(*parse("b"))
    assert [row[0] for row in rows] == [option.variable for option in OPTIONS]
    assert len({option.variable for option in OPTIONS}) == len(OPTIONS)


def test_every_variable_is_read() -> None:
    """Each with a value that is not the default."""
    given = {
        "bool": ("on", True),
        "str": ("cpu", "cpu"),
        "Path": ("here", Path("here")),
        "path": ("/embed", "/embed"),
        "hosts": ("a.example, http://b:9000", ("a.example", "http://b:9000")),
        "int": ("77", 77),
        "float": ("1.5", 1.5),
        "share": ("0.125", 0.125),
        "tuple": ("http://abcdefgh, http://bcdefghi", ("http://abcdefgh", "http://bcdefghi")),
        "LogLevel": ("debug", "debug"),
        "Modality": ("image", "image"),
        "LogFormat": ("json", "json"),
    }
    special = {
        "log_level": "LogLevel",
        "modality": "Modality",
        "access_log_format": "LogFormat",
        "root_path": "path",
        "url_hosts": "hosts",
        "image_share": "share",
    }
    environment, wanted = {"EDGECLIP_BUNDLE": "b"}, {}
    for option, field in zip(OPTIONS, dataclasses.fields(Settings), strict=True):
        kind = getattr(field.type, "__name__", str(field.type)).partition("[")[0].partition(" |")[0]
        kind = kind.removeprefix("pathlib.")
        kind = special.get(field.name, kind)
        environment[option.variable], wanted[field.name] = given[kind]
    environment |= {
        "EDGECLIP_MAX_PENDING_BYTES": "78",
        "EDGECLIP_MAX_QUEUED_TEXTS": "79",
        "EDGECLIP_METRICS_PORT": "80",
    }
    wanted |= {"max_pending_bytes": 78, "max_queued_texts": 79, "metrics_port": 80}
    settings, sources = parse(**environment)
    assert dataclasses.asdict(settings) == wanted
    assert "default" not in sources.values()


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        ((), {}, "no bundle: give its folder, or set EDGECLIP_BUNDLE"),
        (("b", "--port", "x"), {}, "--port: found 'x', wanted a whole number"),
        (("b", "--port", "65536"), {}, "port is 65536, wanted 0 (any free one) to 65535"),
        (("b",), {"EDGECLIP_PORT": "tcp://10.0.0.1:80"}, "`enableServiceLinks: false`"),
        (("b",), {"EDGECLIP_ALLOW_URLS": "maybe"}, "EDGECLIP_ALLOW_URLS: found 'maybe', wanted true or false"),
        (("b", "--max-items", "0"), {}, "max_items is 0, wanted 1 or more"),
        (("b", "--request-timeout-s", "0"), {}, "request_timeout_s is 0.0, wanted more than 0"),
        (("b", "--request-timeout-s", "nan"), {}, "wanted seconds"),
        (("b", "--max-images", "300"), {}, "a request must fit into the queue"),
        (("b", "--max-body-bytes", "999999999"), {}, "more than max_pending_bytes"),
        (("b", "--max-request-chars", "9999"), {}, "max_text_chars is 262144, more than max_request_chars, 9999"),
        (("b", "--allow-http-urls"), {}, "without allow_urls"),
        (
            ("b", "--root-path", "embed/"),
            {},
            "root path 'embed/': wanted /name or /name/name, without a slash",
        ),
        (("b", "--cors", "example.org"), {}, "wanted https://host[:port], or *"),
        (("b", "--access-log-format", "xml"), {}, "--access-log-format: found 'xml', wanted one of text, json"),
        (("b", "--log-level", "trace"), {}, "wanted one of debug, info, warning, error"),
        (("b", "--max-redirects", "-1"), {}, "max_redirects is -1"),
        (("b", "--image-share", "25%"), {}, "--image-share: found '25%', wanted a share, as 0.25"),
        (("b", "--image-share", "0.6"), {}, "image_share is 0.6, wanted 0.02 to 0.5"),
        (("b", "--image-share", ".01"), {}, "image_share is 0.01, wanted 0.02 to 0.5"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: tuple[str, ...], environment: dict[str, str], told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(*arguments, **environment)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_bad_key_is_not_shown() -> None:
    with pytest.raises(InputError) as caught:
        parse("b", EDGECLIP_API_KEYS="long-enough-secret,secret")
    assert "less than 8 characters" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match="no header carries") as caught:
        parse("b", EDGECLIP_API_KEYS="geheimschlüssel")
    assert "geheim" not in str(caught.value)


def test_print_config_shows_everything_but_keys(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_API_KEYS", "secret-number-1,secret-number-2")
    status, out, err = run("serve", "--print-config", "--port", 9, capsys=capsys)
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert lines["EDGECLIP_PORT"] == ["--port", "9", "--port"]
    assert lines["EDGECLIP_API_KEYS"] == ["2", "keys", "EDGECLIP_API_KEYS"]
    assert "secret" not in out
    assert len(out.splitlines()) == 1 + len(OPTIONS)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("EDGECLIP_API_KEY", "EDGECLIP_API_KEYS"),
        ("EDGECLIP_MAXITEMS", "EDGECLIP_MAX_ITEMS"),
        ("EDGECLIP_MAX_BODY_BYTE", "EDGECLIP_MAX_BODY_BYTES"),
        ("EDGECLIP_ALLOW_URL", "EDGECLIP_ALLOW_URLS"),
        ("EDGECLIP_LOGLEVEL", "EDGECLIP_LOG_LEVEL"),
        ("edgeclip_port", "EDGECLIP_PORT"),
        ("EDGECLIP_MODEL_FOLDER_ON_THE_DISK", None),
        ("EDGECLIP_", None),
    ],
)
def test_a_misspelt_variable_is_told_with_the_nearest_one(name: str, near: str | None) -> None:
    (told,) = unknown_variables({name: "secret-value", "HOME": "/"})
    assert f"the variable '{name}' is no setting and changes nothing" in told and "secret-value" not in told
    assert (f"did you mean {near}?" in told) if near else ("did you mean" not in told)


def test_variables_that_are_settings_or_kubernetes_own_are_not_told() -> None:
    assert unknown_variables({option.variable: "x" for option in OPTIONS}) == []
    for service in ("EDGECLIP", "EDGECLIP_GPU"):
        ports = {"_PORT": "tcp://10.0.0.1:80", "_PORT_80_TCP": "tcp://10.0.0.1:80", "_PORT_80_TCP_ADDR": "10.0.0.1"}
        hosts = {"_SERVICE_HOST": "10.0.0.1", "_SERVICE_PORT": "80", "_SERVICE_PORT_HTTP": "80"}
        for some in (ports, {**hosts, **ports}, hosts):
            assert unknown_variables({service + name: value for name, value in some.items()}) == []


def test_what_kubernetes_alone_would_not_set_so_is_told() -> None:
    """A port without the Service that it would belong to is a misspelt setting."""
    for name in ("METRIC_PORT", "LISTEN_PORT", "SERVICE_PORT", "SERVICE_HOST", "PORT_8000_TCP"):
        (told,) = unknown_variables({f"EDGECLIP_{name}": "9100", "OTHER_SERVICE_HOST": "10.0.0.1"})
        assert f"'EDGECLIP_{name}'" in told
    (told,) = unknown_variables(
        {"EDGECLIP_METRIC_PORT": "9100", "EDGECLIP_SERVICE_HOST": "1", "EDGECLIP_SERVICE_PORT": "1"}
    )
    assert "did you mean EDGECLIP_METRICS_PORT?" in told


@pytest.mark.parametrize(
    "name", ["EDGE_CLIP_PORT", "EDGECLIPPORT", "EDGE-CLIP_PORT", "edge_clip_port", "EDGECLIP-PORT"]
)
def test_a_misspelt_prefix_is_told(name: str) -> None:
    (told,) = unknown_variables({name: "9"})
    assert told == f"the variable '{name}' is no setting and changes nothing; did you mean EDGECLIP_PORT?"


def test_variables_of_other_programs_are_not_told() -> None:
    assert (
        unknown_variables({"EDGECLIPPER_HOME": "/", "EDGE_CLIPS": "3", "EDGE_CLIP_ART_DIR": "/", "EDGE": "1"}) == []
    )


def test_a_misspelt_variable_is_one_line_on_stderr_and_no_error(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECLIP_PROT", "9")
    status, out, err = run("serve", "--print-config", capsys=capsys)
    assert (status, err.count("\n")) == (0, 1) and "EDGECLIP_PORT" in out
    assert (
        err
        == "edgeclip: the variable 'EDGECLIP_PROT' is no setting and changes nothing; did you mean EDGECLIP_PORT?\n"
    )


def test_the_command_line_does_not_load_the_service() -> None:
    assert run_process("serve", "--help").returncode == 0
    done = run_process("serve", "--print-config")
    assert (done.returncode, done.stderr) == (0, "")


def test_keys_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one-two-three\n\n# a comment\n  four-five-six  # another\n")
    assert read_keys(tmp_path / "keys") == ("one-two-three", "four-five-six")
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")


def test_a_key_with_a_number_sign_is_whole(tmp_path: Path) -> None:
    """A comment begins at the beginning of a line or after white space; Windows' mark belongs to no key."""
    (tmp_path / "keys").write_bytes(
        b"\xef\xbb\xbfsk-a#b#c\r\nsk-four-five#\n#sk-no-key\n \t# no key\nsk-six#7\t#8 # c\n"
    )
    assert read_keys(tmp_path / "keys") == ("sk-a#b#c", "sk-four-five#", "sk-six#7")
    ring = KeyRing(read_keys(tmp_path / "keys"))
    assert ring.opens("Bearer sk-a#b#c") and not ring.opens("Bearer sk-a")


@pytest.mark.parametrize(
    ("header", "opens"),
    [
        ("Bearer one-two-three", True),
        ("bearer  four-five-six ", True),
        ("Bearer one-two-thre", False),
        ("Bearer one-two-three-", False),
        ("Basic one-two-three", False),
        ("one-two-three", False),
        ("Bearer ", False),
        ("Bearer ü\udcff", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_whole_key_opens(header: str | None, opens: bool) -> None:
    ring = KeyRing(("one-two-three", "four-five-six"))
    assert ring.is_needed and ring.opens(header) is opens


def test_without_keys_the_service_is_open() -> None:
    assert not KeyRing(()).is_needed and KeyRing(()).opens(None)
