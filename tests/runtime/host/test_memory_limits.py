"""Each limit of a process's memory is found with what is left of it; a made-up machine stands for /proc and /sys."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeclip.host.memory_limits import MemoryLimit, read_limits
from tests.runtime.host.test_cgroup import V1, V2, plant

MEMINFO = "MemTotal: 4000 kB\nMemFree: 100 kB\nMemAvailable: 3000 kB\nSwapTotal: {swap} kB\nSwapFree: {swap} kB\n"
MB = 1 << 20


def limits(root: Path, *, swap_kb: int = 0) -> list[MemoryLimit]:
    (root / "proc/meminfo").write_text(MEMINFO.format(swap=swap_kb))
    return [limit for limit in read_limits(root) if limit.counted == "resident"]


def test_what_the_kernel_can_drop_is_free_in_version_2(tmp_path: Path) -> None:
    stat = "anon 500\ninactive_file 200\nactive_file 100\nslab_reclaimable 50\nfile 300\n"
    files = {"a/memory.max": "1000\n", "a/memory.current": "900\n", "a/memory.stat": stat}
    (group, machine) = limits(plant(tmp_path, "0::/a/b\n", V2, files))
    assert (group.limit_bytes, group.free_bytes, group.is_hard) == (1000, 1000 - (900 - 350), True)
    assert (machine.limit_bytes, machine.free_bytes) == (4000 << 10, 3000 << 10)


def test_what_the_kernel_can_drop_is_free_in_version_1(tmp_path: Path) -> None:
    stat = "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 100\n"
    files = {
        "memory/a/memory.limit_in_bytes": "1000\n",
        "memory/a/memory.usage_in_bytes": "900\n",
        "memory/a/memory.stat": stat,
        "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
    }
    (group, _) = limits(plant(tmp_path, "4:memory:/a\n", V1, files))
    assert (group.limit_bytes, group.free_bytes) == (1000, 400)


def test_every_ancestor_counts_and_a_soft_limit_kills_nothing(tmp_path: Path) -> None:
    files = {"pod/memory.max": "500\n", "pod/box/memory.max": "800\n", "pod/box/memory.high": "400\n"}
    found = limits(plant(tmp_path, "0::/pod/box\n", V2, files))
    assert [(one.limit_bytes, one.is_hard) for one in found[:-1]] == [(500, True), (800, True), (400, False)]


@pytest.mark.parametrize(
    ("files", "swap_kb", "limit"),
    [
        ({"memory.max": "1000\n"}, 1, 1000 + 1024),  # as much as the machine has
        ({"memory.max": "1000\n", "memory.swap.max": "max\n"}, 1, 1000 + 1024),
        ({"memory.max": "1000\n", "memory.swap.max": "24\n"}, 1, 1024),
        ({"memory.max": "1000\n", "memory.swap.max": "0\n"}, 1, 1000),
        ({"memory.max": "1000\n", "memory.swap.max": "24\n"}, 0, 1000),
    ],
)
def test_swap_counts_as_far_as_the_group_may_use_it(
    tmp_path: Path, files: dict[str, str], swap_kb: int, limit: int
) -> None:
    (group, _) = limits(plant(tmp_path, "0::/\n", V2, files), swap_kb=swap_kb)
    assert group.limit_bytes == limit


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("name", "counted"), [("RLIMIT_AS", "address"), ("RLIMIT_DATA", "data")])
def test_a_limit_of_the_shell_is_found_with_what_is_left(name: str, counted: str) -> None:
    program = (
        "import resource; from edgeclip.host.memory_limits import *; "
        f"resource.setrlimit(resource.{name}, ({700 * MB}, {700 * MB})); "
        f"(one,) = [limit for limit in read_limits() if limit.counted == {counted!r}]; "
        f"print(one.limit_bytes, one.limit_bytes - one.free_bytes - held_bytes()[{counted!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    limit, rest = map(int, done.stdout.split())
    assert limit == 700 * MB and abs(rest) < 8 * MB


# What a process holds before and after 64 MB more, in a process that does nothing else.
_HOLD = """
import json
from edgeclip.host.memory_limits import held_bytes
before = held_bytes()
more = bytearray(64 << 20)
more[::4096] = b"1" * len(more[::4096])
after = held_bytes()
print(json.dumps({counted: after[counted] - before[counted] for counted in after}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_this_process_holds_grows_with_it() -> None:
    ended = subprocess.run([sys.executable, "-c", _HOLD], capture_output=True, text=True, check=True)
    grown = json.loads(ended.stdout)
    assert grown and all(56 * MB < more < 80 * MB for more in grown.values())


def test_a_system_without_these_files_has_no_limits(tmp_path: Path) -> None:
    assert [limit for limit in read_limits(tmp_path) if limit.counted == "resident"] == []
