"""A folder of compiled TensorRT engines on disk that is complete or absent.

TensorRT takes minutes to build an engine, and writes it straight into the folder it is given. So that folder has
another name until the session is open, and a list of its files with their sizes is written last. A killed process or
a half-copied folder leaves nothing that would be used.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeclip.bundle.staging import remove_left_behind, stage_folder
from edgeclip.errors import DeviceError

_LIST = "files.json"
_ENGINES = "*.engine"  # as onnxruntime names them


@contextlib.contextmanager
def engine_folder(root: Path, key: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of engines for `key`, and whether it is complete; new engines are kept if the block succeeds.

    DeviceError for a folder that cannot be written. A disk that is full when the engines are built is reported on
    stderr: they run, and are built again next time.
    """
    folder = root / key
    if _is_whole(folder):
        yield folder, True
        return
    with contextlib.ExitStack() as stack:
        try:
            shutil.rmtree(folder, ignore_errors=True)
            root.mkdir(parents=True, exist_ok=True)
            remove_left_behind(folder)
            stage = stack.enter_context(stage_folder(folder))
        except OSError as error:
            raise DeviceError(
                f"{root}: engines cannot be kept there ({error.strerror}), and building them takes minutes each "
                "time; set XDG_CACHE_HOME to a folder that may be written"
            ) from error
        yield stage, False
        try:
            _write_list(stage)
            stage.replace(folder)
        except OSError as error:
            if not _is_whole(folder):  # else another process was first; its engines are as good
                message = f"the engines cannot be kept ({error.strerror or error}) and will be built again"
                print(f"edgeclip: {root}: {message}", file=sys.stderr)


def _write_list(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if not any(folder.glob(_ENGINES)):  # TensorRT says in its log alone that it could not write one
        raise OSError("none was written")
    (folder / _LIST).write_text(json.dumps(sizes))


def _is_whole(folder: Path) -> bool:
    """Whether the folder has the files of its list in their sizes. The timing cache may have grown since."""
    try:
        sizes = json.loads((folder / _LIST).read_text())
        engines = {name: size for name, size in sizes.items() if Path(name).match(_ENGINES)}
        return bool(engines) and all((folder / name).stat().st_size == size for name, size in engines.items())
    except (OSError, ValueError, AttributeError):
        return False
