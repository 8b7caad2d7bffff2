"""A folder of compiled engines on disk: whole or not there.

An engine takes TensorRT minutes to build and it writes it straight into the folder it is given. So that folder has
another name until the session stands; whoever is killed on the way leaves nothing that would be used.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgeclip.errors import DeviceError


@contextlib.contextmanager
def engine_folder(root: Path, key: str) -> Iterator[tuple[Path, bool]]:
    """The folder of engines for `key`, and whether they are built by now; else they are kept if the block succeeds.

    DeviceError for a root that cannot be written.
    """
    folder = root / key
    if folder.is_dir():
        yield folder, True
        return
    stage = root / f"{key}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(stage, ignore_errors=True)  # of a dead process with our number
        stage.mkdir(parents=True)
    except OSError as error:
        raise DeviceError(
            f"{root}: engines cannot be kept there ({error.strerror}), and building them takes minutes each time; "
            "set XDG_CACHE_HOME to a folder that may be written"
        ) from error
    try:
        yield stage, False
        with contextlib.suppress(OSError):  # another process was first; its engines are as good
            stage.replace(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
