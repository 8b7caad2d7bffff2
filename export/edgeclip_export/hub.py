"""A checkpoint from the Hugging Face Hub: the needed files of one commit, by way of the Hub's own cache.

A branch moves and a commit does not, so a floating revision is resolved first, only that commit is
fetched, and its hash is handed on for the manifest. Which files are needed follows from config.json, so
it is fetched first. Weights of other formats, ONNX files and code that a repository offers are never
fetched. Tokens, mirrors, the cache's place, offline mode and progress bars (on stderr, where it is a
terminal) are huggingface_hub's: HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE,
HF_HUB_DISABLE_PROGRESS_BARS. Checking the files is `edgeclip_export.opening`'s work.
"""

import errno
import itertools
import logging
import os
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from edgeclip.errors import BuildError, MissingExtraError
from edgeclip.host.installation import install_command
from edgeclip_export.checkpoint import CONFIGS, INDEX, WEIGHTS, list_names, read_json, read_shards
from edgeclip_export.families import MODELS, find_family, known_repository
from edgeclip_export.families.family import Needs
from edgeclip_export.opening import choose_config, missing_files, needed_files
from edgeclip_export.recognition import describe_absence, recognise

_DEFAULT_REVISION = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_DETAIL_CHARS = 300  # of another library's message that are passed on
_OTHER_WAY = "fetch it on another machine and pass the folder"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCheckpoint:
    """The cache's folder with the needed files of a checkpoint, and the full commit hash they are of."""

    folder: Path
    repo_id: str
    revision: str


def is_hub_id(name: str) -> bool:
    """Whether `name` has the shape owner/name of a Hub id and no file, folder or link on the disk has that name."""
    return _has_hub_shape(name) and not os.path.lexists(name)


def fetch_checkpoint(repo_id: str, revision: str | None = None) -> HubCheckpoint:
    """Bring a checkpoint's files at one commit to this disk; a commit in the cache costs no request.

    `revision` is a branch, a tag or a commit; without one it is the pinned commit of a known repository,
    else "main". When the Hub is out of reach, what the cache last saw of a branch is used and logged.
    Raises BuildError, in one line, when the repository, the revision or one of the files is not there or
    not to be had with this token, the Hub is out of reach (or HF_HUB_OFFLINE is set) with the cache
    incomplete, or the disk is full; MissingExtraError when huggingface_hub is not installed.
    """
    try:
        import httpx2
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"{repo_id} is on the Hub and huggingface_hub is not installed: `{install_command('export')}`, "
            "or pass a folder"
        ) from error
    if not _has_hub_shape(repo_id):
        raise BuildError(f"{repo_id!r}: neither a folder nor a Hub id, which is owner/name")
    known = known_repository(repo_id)
    wanted = revision or (known.revision if known else _DEFAULT_REVISION)
    try:
        folder = _fetch(repo_id, wanted)
    except (OSError, RuntimeError, ValueError, UserWarning, httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _refusal(repo_id, wanted, _explain(error, repo_id)) from error
    return HubCheckpoint(folder=folder, repo_id=repo_id, revision=folder.name)


def _has_hub_shape(name: str) -> bool:
    return bool(_HUB_ID.fullmatch(name)) and not (".." in name or "--" in name or name.endswith(".git"))


def _fetch(repo_id: str, wanted: str) -> Path:
    import httpx2
    from huggingface_hub import HfApi, constants, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    cached, absent = _look_in_cache(repo_id, wanted)
    if cached and (is_offline_mode() or _COMMIT.fullmatch(wanted)):
        return cached
    if is_offline_mode():
        raise _refusal(
            repo_id,
            wanted,
            f"HF_HUB_OFFLINE is set and the cache {constants.HF_HUB_CACHE} lacks {', '.join(absent)}; "
            f"unset it, name a revision that the cache has, or {_OTHER_WAY}",
        )
    api = HfApi()
    try:
        # One bounded look before anything else: resolve_revision would wait forever behind a firewall that
        # drops packets, hf_hub_download for minutes (huggingface_hub 2.4), and here is the list of files.
        info = api.model_info(repo_id, revision=wanted, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (httpx2.TransportError, HfHubHTTPError) as error:
        if cached and _is_outage(error):
            _LOG.warning(
                "%s: the Hub is out of reach, using %s as the cache last saw it: %s",
                repo_id,
                wanted,
                cached.name,
            )
            return cached
        raise
    if not _COMMIT.fullmatch(info.sha or ""):
        raise ValueError(f"it gave {info.sha!r} as the commit")
    offered = {sibling.rfilename for sibling in info.siblings or ()}
    if not offered.intersection(CONFIGS):
        why = recognise(offered, MODELS) or describe_absence(missing_files(offered, Needs()), offered)
        raise _refusal(repo_id, wanted, why)
    commit = api.resolve_revision(repo_id, revision=wanted).resolved  # writes down the branch for offline use
    _download(repo_id, wanted, commit, offered)
    fetched, absent = _look_in_cache(repo_id, commit)
    if fetched is None:
        raise ValueError(f"what it sent as commit {commit} is of another and lacks {', '.join(absent)}")
    return fetched


def _download(repo_id: str, wanted: str, commit: str, offered: Collection[str]) -> None:
    """Fetch the files of a commit that its family needs, of all that are offered, into the cache."""
    from huggingface_hub import hf_hub_download

    with warnings.catch_warnings():
        # huggingface_hub warns that the disk is too small, and then fills it.
        warnings.filterwarnings("error", message="Not enough free disk space")
        paths = {name: Path(hf_hub_download(repo_id, name, revision=commit)) for name in CONFIGS if name in offered}
        if any(path.parent.name != commit for path in paths.values()):
            raise ValueError(f"what it sent as commit {commit} is of another")
        config = choose_config(paths, lambda name: read_json(paths[name])) or {}
        needs = find_family(config, f"{repo_id} at {wanted}").needs(config)  # before gigabytes of another model
        if missing := missing_files(offered, needs):
            raise _refusal(repo_id, wanted, describe_absence(missing, offered))
        for name in needed_files(offered, needs):  # what can fail cheaply comes first
            path = Path(hf_hub_download(repo_id, name, revision=commit))
            if name == INDEX:
                shards = list(read_shards(path))
                if absent := [shard for shard in shards if shard not in offered]:
                    raise _refusal(
                        repo_id, wanted, f"{INDEX} names {list_names(absent)}, and the repository has none"
                    )
                for shard in shards:
                    hf_hub_download(repo_id, shard, revision=commit)


def _look_in_cache(repo_id: str, revision: str) -> tuple[Path | None, list[str]]:
    """The snapshot's folder, which is named by its commit, if it has all files; and the files it lacks."""
    from huggingface_hub import try_to_load_from_cache

    nothing = [forms[0] for forms in missing_files((), Needs())]
    found = [try_to_load_from_cache(repo_id, name, revision=revision) for name in CONFIGS]
    paths = [Path(path) for path in found if isinstance(path, str)]
    if not paths:
        return None, nothing
    folder = paths[0].parent
    if _COMMIT.fullmatch(revision) and folder.name != revision:
        return None, nothing  # huggingface_hub believes a mirror that answers with another commit
    config = choose_config([path.name for path in paths], lambda name: read_json(folder / name)) or {}
    needs = find_family(config, f"{repo_id} at {revision}").needs(config)
    wanted = (
        *CONFIGS,
        *needs.weights,
        WEIGHTS,
        INDEX,
        *itertools.chain(needs.tokenizer, *needs.needed),
        *needs.optional,
    )
    names = [name for name in wanted if (folder / name).exists()]
    absent = [forms[0] for forms in missing_files(names, needs)]
    if INDEX in names and not {*needs.weights, WEIGHTS}.intersection(names):
        absent += [name for name in read_shards(folder / INDEX) if not (folder / name).exists()]
    return (None if absent else folder), absent


def _is_outage(error: Exception) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError | LocalEntryNotFoundError)


def _explain(error: Exception, repo_id: str) -> str:
    """What went wrong and what to do, for each of the ways in which huggingface_hub fails."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # "not in the cache" is what huggingface_hub makes of every failed look
    page = f"{constants.ENDPOINT}/{repo_id}"
    status, detail = None, str(error)
    if isinstance(error, HfHubHTTPError):
        status, detail = error.response.status_code, error.server_message or error.response.reason_phrase
    detail = _one_line(detail)[:_DETAIL_CHARS] or type(error).__name__
    if isinstance(error, DisabledRepoError):
        return "the Hub has disabled this repository; pass a folder"
    if isinstance(error, GatedRepoError):
        return f"gated; accept the licence on {page} and set HF_TOKEN to a token of that account"
    if isinstance(error, RevisionNotFoundError):
        return f"no such revision; wanted a branch, a tag or a commit, see {page}/commits/{_DEFAULT_REVISION}"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            "no such folder here, and on the Hub no such model that you may see; check the name, or, for a "
            f"private or gated model, set HF_TOKEN and accept the licence on {page}"
        )
    if _is_outage(error):
        return f"the Hub is out of reach ({detail}) and the cache is incomplete; connect, or {_OTHER_WAY}"
    if isinstance(error, UserWarning) or (isinstance(error, OSError) and error.errno in _DISK_FULL):
        return f"no room for it ({detail}); free some, or set HF_HOME to a folder on a larger disk"
    if status is not None:
        return f"the Hub answered {status} ({detail}); try again later, or {_OTHER_WAY}"
    if isinstance(error, ValueError | FileMetadataError):
        return f"{constants.ENDPOINT} does not answer as the Hub does ({detail}); check HF_ENDPOINT and proxy"
    return f"not fetched into {constants.HF_HUB_CACHE} ({type(error).__name__}: {detail}); or {_OTHER_WAY}"


def _refusal(repo_id: str, revision: str, why: str) -> BuildError:
    return BuildError(_one_line(f"{repo_id} at {revision}: {why}"))


def _one_line(text: str) -> str:
    return " ".join(text.split())
