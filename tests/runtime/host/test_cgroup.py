"""The smallest limit on the way from our control group to the root of its tree counts, in both versions."""

from pathlib import Path

import pytest

from edgeclip.host.cgroup import cpu_quota, memory_limit

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def plant(root: Path, own: str, mounts: str, files: dict[str, str]) -> Path:
    """A made-up machine: /proc/self/cgroup, /proc/self/mountinfo, and files under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "0 100000\n"}, None),
        ({"cpu.max": "100000 0\n"}, None),
        ({"cpu.max": "some words\n"}, None),
        ({"cpu.max": ""}, None),
        ({"pod/cpu.max": "300000 100000\n"}, 3),
        ({"pod/cpu.max": "max 100000\n", "pod/box/cpu.max": "100000 100000\n"}, 1),
        ({"pod/cpu.max": "50000 100000\n", "pod/box/cpu.max": "400000 100000\n"}, 0.5),
        ({"cpu.max": "200000 100000\n", "pod/box/cpu.max": "400000 100000\n"}, 2),
        ({"other/cpu.max": "100000 100000\n", "pod/other/cpu.max": "100000 100000\n"}, None),  # not ours
    ],
)
def test_nested_groups_of_version_2(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert cpu_quota(plant(tmp_path, "0::/pod/box\n", V2, files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu,cpuacct/box/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu,cpuacct/box/cpu.cfs_quota_us": "300000\n"}, None),
        ({"cpu,cpuacct/box/cpu.cfs_quota_us": "", "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n"}, None),
        ({"memory/box/cpu.cfs_quota_us": "1\n", "memory/box/cpu.cfs_period_us": "1\n"}, None),  # another's tree
    ],
)
def test_version_1(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    own = "4:memory:/elsewhere\n3:cpu,cpuacct:/box\n2:cpuset:/\n"
    assert cpu_quota(plant(tmp_path, own, V1, files)) == expected


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    """As systemd mounts them: the second as an empty tree beside the first."""
    mounts = V1 + "38 31 0:35 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "200000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "unified/box/cpu.max": "100000 100000",
    }
    assert cpu_quota(plant(tmp_path, "3:cpu,cpuacct:/\n0::/box\n", mounts, files)) == 1


def test_a_container_without_a_namespace_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    """Its path in /proc/self/cgroup is the host's, its mount starts at it."""
    mounts = "32 31 0:29 /docker/1f3a /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
    files = {
        "cpu/cpu.cfs_quota_us": "400000",
        "cpu/cpu.cfs_period_us": "100000",
        "cpu/inner/cpu.cfs_quota_us": "100000",
        "cpu/inner/cpu.cfs_period_us": "100000",
    }
    assert cpu_quota(plant(tmp_path / "at", "3:cpu:/docker/1f3a\n", mounts, files)) == 4
    assert cpu_quota(plant(tmp_path / "below", "3:cpu:/docker/1f3a/inner\n", mounts, files)) == 1
    assert cpu_quota(plant(tmp_path / "elsewhere", "3:cpu:/another\n", mounts, files)) == 4


def test_a_path_out_of_the_tree_leads_nowhere(tmp_path: Path) -> None:
    """A process moved above its namespace's root shows `/../sibling`."""
    files = {"cpu.max": "200000 100000"}
    assert cpu_quota(plant(tmp_path, "0::/../sibling\n", V2, files)) == 2


@pytest.mark.parametrize(
    ("own", "mounts"), [("", V2), ("0::/\n", ""), ("words\n", "more words - \n - \n"), ("0", V2)]
)
def test_what_is_not_understood_sets_no_limit(tmp_path: Path, own: str, mounts: str) -> None:
    files = {"elsewhere/cpu.max": "100000 100000", "elsewhere/memory.max": "1000"}
    root = plant(tmp_path, own, mounts, files)
    assert cpu_quota(root) is None and memory_limit(root) is None


def test_without_proc_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None and memory_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max\n"}, None),
        ({"pod/memory.max": "2000\n", "pod/box/memory.max": "3000\n"}, 2000),
        ({"pod/memory.max": "max\n", "pod/box/memory.max": "3000\n"}, 3000),
    ],
)
def test_memory_of_version_2(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert memory_limit(plant(tmp_path, "0::/pod/box\n", V2, files)) == expected


@pytest.mark.parametrize(("limit", "expected"), [("1073741824", 2**30), ("9223372036854771712", None), ("-1", None)])
def test_memory_of_version_1(tmp_path: Path, limit: str, expected: int | None) -> None:
    files = {"memory/memory.limit_in_bytes": limit}
    assert memory_limit(plant(tmp_path, "4:memory:/\n", V1, files)) == expected


def test_here() -> None:
    assert (cpu_quota() or 1) > 0 and (memory_limit() or 1) > 0
