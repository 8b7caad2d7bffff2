"""A checkpoint from the Hub: the needed files of one commit, the cache before the network, one line when it fails.

The Hub is a real HTTP server on loopback.
"""

import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeclip.errors import BuildError, MissingExtraError
from edgeclip.host.installation import install_command
from edgeclip_export.families import FAMILIES
from edgeclip_export.hub import _explain, fetch_checkpoint, is_hub_id
from tests.conftest import FILES
from tests.scenes.fake_hub import COMMIT, NEXT_COMMIT, REPO, WANTED, FakeHub, forget_huggingface_hub

Enter = Callable[..., None]
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def enter(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Enter]:
    """Call it to start over with an environment: huggingface_hub's modules forget what they have read."""
    before = forget_huggingface_hub()
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "TQDM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def start_over(**environment: str) -> None:
        forget_huggingface_hub()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    yield start_over
    forget_huggingface_hub()
    sys.modules.update(before)


def _refusal(repo_id: str = REPO, revision: str | None = None) -> str:
    with pytest.raises(BuildError) as caught:
        fetch_checkpoint(repo_id, revision)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(repo_id)
    return message


@pytest.mark.parametrize("name", [REPO, "jinaai/jina-clip-v2", "a/b", "A_1/b.c-d_e"])
def test_owner_and_name_are_a_hub_id(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name",
    [
        *("./x", "../x", "/x", "~/x", "x/", "x", "", "a/b/c", "./a/b", "a//b", "a\\b", "a/..", "a b/c", "ü/x"),
        *("a/b.git", "a/b--c", ".hidden/x", "-a/b", "a/b\n", "a" * 97 + "/b", "https://huggingface.co/a/b"),
    ],
)
def test_paths_and_malformed_names_are_no_hub_ids(name: str) -> None:
    assert not is_hub_id(name)


def test_what_lies_on_the_disk_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "clip").mkdir(parents=True)
    (tmp_path / "models" / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("models/clip")
    assert not is_hub_id("models/file")
    assert is_hub_id("models/other")


def test_a_branch_becomes_its_commit_and_only_the_four_files_of_that_commit_are_fetched(
    hub: FakeHub, enter: Enter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enter()
    checkpoint = fetch_checkpoint(REPO)
    assert (checkpoint.repo_id, checkpoint.revision) == (REPO, COMMIT)
    assert hub.downloaded() == {f"{COMMIT}/{name}" for name in FILES}
    assert {path.name: path.read_bytes() for path in checkpoint.folder.iterdir()} == WANTED
    assert checkpoint.folder.is_relative_to(tmp_path / "home")
    assert all("main" not in line for line in hub.requests if "/resolve/" in line)
    assert capsys.readouterr().err == ""  # no bar where stderr is no terminal


def test_the_weights_come_last(hub: FakeHub, enter: Enter) -> None:
    enter()
    fetch_checkpoint(REPO)
    assert hub.requests[-1].endswith("/model.safetensors")


def test_a_terminal_sees_progress_bars(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    enter()
    fetch_checkpoint(REPO)
    assert re.search(r"model\.safetensors: 100%", terminal.getvalue())


def test_a_commit_in_the_cache_costs_no_request(hub: FakeHub, enter: Enter) -> None:
    enter()
    first = fetch_checkpoint(REPO, COMMIT)
    hub.requests.clear()
    assert fetch_checkpoint(REPO, COMMIT) == first
    assert hub.requests == []


def test_a_branch_that_moved_is_fetched_again(hub: FakeHub, enter: Enter) -> None:
    enter()
    first = fetch_checkpoint(REPO, "main")
    hub.head = NEXT_COMMIT
    second = fetch_checkpoint(REPO, "main")
    assert (first.revision, second.revision) == (COMMIT, NEXT_COMMIT)
    assert first.folder != second.folder


def test_offline_the_cache_answers_without_a_request(hub: FakeHub, enter: Enter) -> None:
    enter()
    first = fetch_checkpoint(REPO)
    hub.requests.clear()
    enter(HF_HUB_OFFLINE="1")
    assert [fetch_checkpoint(REPO, revision) for revision in (None, "main", COMMIT)] == [first] * 3
    assert hub.requests == []


def test_offline_an_incomplete_cache_is_refused_by_name(hub: FakeHub, enter: Enter) -> None:
    enter()
    (fetch_checkpoint(REPO).folder / "tokenizer.json").unlink()
    hub.requests.clear()
    enter(HF_HUB_OFFLINE="1")
    message = _refusal()
    assert "main" in message
    assert "HF_HUB_OFFLINE" in message
    assert "lacks tokenizer.json;" in message
    assert "another machine" in message
    assert COMMIT in _refusal(revision=COMMIT)
    assert hub.requests == []


def test_offline_an_empty_cache_is_refused(enter: Enter) -> None:
    enter(HF_HUB_OFFLINE="1")
    assert all(name in _refusal() for name in ("config.json", "model.safetensors", "tokenizer.json"))


def test_an_incomplete_cache_is_completed_online(hub: FakeHub, enter: Enter) -> None:
    enter()
    first = fetch_checkpoint(REPO)
    (first.folder / "model.safetensors").unlink()
    assert fetch_checkpoint(REPO) == first
    assert (first.folder / "model.safetensors").read_bytes() == WANTED["model.safetensors"]


def test_without_network_a_branch_is_what_the_cache_last_saw_and_that_is_logged(
    hub: FakeHub, enter: Enter, caplog: pytest.LogCaptureFixture
) -> None:
    enter()
    first = fetch_checkpoint(REPO)
    enter(HF_ENDPOINT=_dead_url())
    assert fetch_checkpoint(REPO) == first
    assert [record.name for record in caplog.records] == ["edgeclip_export.hub"]
    assert COMMIT in caplog.text


def test_without_network_and_cache_it_is_refused(enter: Enter) -> None:
    enter(HF_ENDPOINT=_dead_url())
    assert "out of reach" in _refusal()
    assert "out of reach" in _refusal(revision=COMMIT)


def test_a_firewall_that_swallows_packets_is_given_up_on(enter: Enter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        enter(HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}", HF_HUB_ETAG_TIMEOUT="1")
        assert "timed out" in _refusal()


def _dead_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as closed_at_once:
        return f"http://127.0.0.1:{closed_at_once.getsockname()[1]}"


@pytest.mark.parametrize(
    "unknown",
    [(404, {"X-Error-Code": "RepoNotFound"}), (401, {"X-Error-Message": "Invalid username or password."})],
    ids=["404", "401"],
)
def test_an_unknown_or_private_repository_is_refused(
    hub: FakeHub, enter: Enter, unknown: tuple[int, dict[str, str]]
) -> None:
    hub.unknown = unknown
    enter()
    message = _refusal("someone/else")
    assert "no such model" in message
    assert "HF_TOKEN" in message
    assert f"{hub.url}/someone/else" in message


def test_a_gated_repository_is_refused_with_the_way_in(hub: FakeHub, enter: Enter) -> None:
    hub.refusal = (403, {"X-Error-Code": "GatedRepo"})
    enter()
    message = _refusal()
    assert "accept the licence" in message
    assert "HF_TOKEN" in message


def test_an_unknown_revision_is_refused(hub: FakeHub, enter: Enter) -> None:
    enter()
    assert "no such revision" in _refusal(revision="v9")
    assert "no such revision" in _refusal(revision="f" * 40)
    assert "at v 9" in _refusal(revision="v\n9")
    assert hub.downloaded() == set()


def test_a_repository_without_safetensors_is_refused_before_any_large_download(hub: FakeHub, enter: Enter) -> None:
    del hub.files["model.safetensors"]
    del hub.files["tokenizer.json"]
    enter()
    assert "has no model.safetensors, tokenizer.json; pytorch_model.bin: pickle files can run code" in _refusal()
    assert hub.downloaded() == {f"{COMMIT}/config.json"}


@pytest.fixture
def sharded(hub: FakeHub) -> FakeHub:
    """The repository as transformers 5 saves a large model, beside what is not needed of it."""
    hub.files |= {
        "processor_config.json": hub.files.pop("preprocessor_config.json"),
        "model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
        "model-00003-of-00002.safetensors": b"left by another save",
        **{name: f"the weights in {name}".encode() for name in SHARDS},
    }
    del hub.files["model.safetensors"]
    return hub


def test_of_shards_those_that_the_index_names_are_fetched(sharded: FakeHub, enter: Enter) -> None:
    enter()
    wanted = {"config.json", "tokenizer.json", "processor_config.json", "model.safetensors.index.json", *SHARDS}
    checkpoint = fetch_checkpoint(REPO)
    assert sharded.downloaded() == {f"{COMMIT}/{name}" for name in wanted}
    assert {path.name for path in checkpoint.folder.iterdir()} == wanted
    assert sharded.requests[-1].endswith(SHARDS[1])
    sharded.requests.clear()
    assert fetch_checkpoint(REPO, COMMIT) == checkpoint
    (checkpoint.folder / SHARDS[0]).unlink()
    assert fetch_checkpoint(REPO, COMMIT) == checkpoint
    assert sharded.downloaded() <= {f"{COMMIT}/{SHARDS[0]}"}
    enter(HF_HUB_OFFLINE="1")
    (checkpoint.folder / SHARDS[1]).unlink()
    assert f"lacks {SHARDS[1]};" in _refusal()


def test_a_shard_that_the_repository_lacks_is_refused_before_any_is_fetched(sharded: FakeHub, enter: Enter) -> None:
    del sharded.files[SHARDS[1]]
    enter()
    assert f"model.safetensors.index.json names {SHARDS[1]}, and the repository has none" in _refusal()
    assert not any(path.endswith(SHARDS[0]) for path in sharded.downloaded())


def test_an_index_that_names_a_file_outside_is_refused(sharded: FakeHub, enter: Enter) -> None:
    sharded.files["model.safetensors.index.json"] = b'{"weight_map": {"a": "../../x.safetensors"}}'
    enter()
    with pytest.raises(BuildError, match=r"a lies in '../../x.safetensors', wanted the name of a safetensors file"):
        fetch_checkpoint(REPO)


def test_one_file_of_weights_goes_before_an_index(hub: FakeHub, enter: Enter) -> None:
    """As transformers chooses; the index is not fetched."""
    hub.files["model.safetensors.index.json"] = b"{}"
    enter()
    assert {path.name for path in fetch_checkpoint(REPO).folder.iterdir()} == set(FILES)


def test_another_model_is_refused_before_its_weights_are_fetched(hub: FakeHub, enter: Enter) -> None:
    hub.files["config.json"] = b'{"architectures": ["BertModel"], "model_type": "bert"}'
    enter()
    assert "is a BertModel (model_type is 'bert'); edgeclip exports jina-clip-v2" in _refusal()
    del hub.files["preprocessor_config.json"]
    assert "is a BertModel" in _refusal()
    assert hub.downloaded() == {f"{COMMIT}/config.json"}


@pytest.mark.parametrize(
    ("name", "said"),
    [("model-q4.gguf", "model-q4.gguf: weights for llama.cpp"), ("adapter_model.safetensors", "an adapter without")],
)
def test_a_repository_of_another_format_is_named(hub: FakeHub, enter: Enter, name: str, said: str) -> None:
    hub.files = {name: b"weights"}
    enter()
    assert said in _refusal()
    assert hub.downloaded() == set()


def test_a_hub_that_fails_while_it_sends_is_refused(hub: FakeHub, enter: Enter) -> None:
    hub.refusal = (418, {"X-Error-Message": "I brew tea"})
    enter()
    assert "answered 418 (I brew tea)" in _refusal()


def test_a_mirror_that_does_not_name_the_commit_is_refused(hub: FakeHub, enter: Enter) -> None:
    hub.refusal = (200, {"ETag": '"0"'})
    enter()
    assert "does not answer as the Hub does" in _refusal()


def test_a_mirror_that_sends_another_commit_is_refused(hub: FakeHub, enter: Enter) -> None:
    hub.refusal = (200, {"ETag": '"0"', "X-Repo-Commit": NEXT_COMMIT})
    enter()
    assert f"commit {COMMIT} is of another" in _refusal()


def test_a_page_that_is_no_hub_is_refused(hub: FakeHub, enter: Enter) -> None:
    hub.is_portal = True
    enter()
    assert "does not answer as the Hub does" in _refusal()


def test_a_disk_too_small_is_refused_before_it_is_filled(
    hub: FakeHub, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 0))
    enter()
    message = _refusal()
    assert "no room" in message
    assert "HF_HOME" in message
    assert hub.downloaded() == set()


def test_a_disk_that_fills_up_is_told_from_other_faults(enter: Enter) -> None:
    enter()
    assert "no room" in _explain(OSError(errno.ENOSPC, "No space left on device"), REPO)
    assert "no room" not in _explain(OSError(errno.EIO, "Input/output error"), REPO)


def test_ctrl_c_is_not_swallowed(hub: FakeHub, enter: Enter) -> None:
    here = threading.get_ident()
    hub.on_download = lambda: signal.pthread_kill(here, signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    enter()
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch_checkpoint(REPO)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_known_repository_is_pinned_unless_a_revision_is_asked_for(hub: FakeHub, enter: Enter) -> None:
    known = {repo_id: known.revision for family in FAMILIES for repo_id, known in family.repositories.items()}
    hub.repo_id = "jinaai/jina-clip-v2"
    pinned = known[hub.repo_id]
    hub.head = pinned
    enter()
    assert fetch_checkpoint(hub.repo_id).revision == pinned
    assert all("main" not in line for line in hub.requests)
    fetch_checkpoint(hub.repo_id, "main")
    assert any(line.endswith("/revision/main") for line in hub.requests)


def test_without_huggingface_hub_the_extra_is_named(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    enter()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("export"))):
        fetch_checkpoint(REPO)


def test_a_path_is_refused_as_a_hub_id() -> None:
    with pytest.raises(BuildError, match="owner/name"):
        fetch_checkpoint("./tiny-clip")
