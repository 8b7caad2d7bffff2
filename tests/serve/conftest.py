"""On a machine without torch, a file of tests that needs a package which is not installed is skipped, with its name.

With `[serve]`, httpx and aiohttp all run. Where torch is installed, as on a developer's machine, none may be missing.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.conftest import HAS_TORCH


class _Module(pytest.Module):
    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            if isinstance(error.__cause__, ModuleNotFoundError):
                pytest.skip(f"{error.__cause__.name} is not installed", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Every file in here is collected so, where torch is missing."""
    return None if HAS_TORCH else _Module.from_parent(parent, path=module_path)
