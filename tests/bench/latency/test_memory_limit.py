"""The smallest memory limit is found by processes that really run under it; the disk is really slow."""

import json
from pathlib import Path

import pytest

from edgeclip.errors import DeviceError
from edgeclip_bench.latency.memory_limit import Asked, Try, lower
from edgeclip_bench.measure import control_groups
from edgeclip_bench.measure.control_groups import control_group
from tests.scenes.command import bench

BUNDLE = Path("tests/data/bundles/golden-int8").resolve()


class Answering(Asked):
    """A process that answers from 100 MB on, without being one."""

    def answer(self, group: Path, limit_bytes: int | None) -> Try:
        assert group.is_dir() and limit_bytes is not None
        return Try(limit_bytes=limit_bytes, outcome="answers" if limit_bytes >= 10**8 else "killed", seconds=0.0)


def can_make_groups() -> bool:
    try:
        with control_group("memory"):
            return True
    except DeviceError:
        return False


HAS_RIGHTS = can_make_groups()
# Shown by `pytest -rs`, and as skipped in every run: a container mostly has no such rights.
needs_rights = pytest.mark.skipif(not HAS_RIGHTS, reason="no rights here to make a control group: nothing is limited")


@needs_rights
@pytest.mark.parametrize("need", [130_000_000, 80_000_000])
def test_the_limit_is_searched_from_above_and_from_below(need: int, tmp_path: Path) -> None:
    tries, smallest = lower(Answering(BUNDLE, "texts", tmp_path, 1.0), need)
    assert smallest is not None and 10**8 <= smallest < 1.06 * 10**8
    assert {one.outcome for one in tries} == {"answers", "killed"}
    assert tries[-1].outcome != tries[-2].outcome


@needs_rights
def test_texts_images_and_the_service_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "limits.json"
    assert bench("memory-limit", str(BUNDLE), "--within-s", "30", "--out", str(out)) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["benchmark"] == "edgeclip_bench.latency.memory_limit"
    found = {one["what"]: one for one in report["found"]}
    assert list(found) == ["texts", "images", "both", "served"]
    for one in found.values():
        assert one["tries"][0]["outcome"] == "answers", "what is predicted is enough"
        assert one["smallest_bytes"] <= one["predicted_bytes"]
    assert "killed" in {tried["outcome"] for tried in found["both"]["tries"]}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == list(found)


@needs_rights
def test_a_slow_disk_slows_the_first_answer(tmp_path: Path) -> None:
    out = tmp_path / "slow.json"
    assert bench("memory-limit", str(BUNDLE), "--read-mb-s", "1", "--out", str(out)) == 0
    report = json.loads(out.read_text(encoding="utf-8"))
    (both,) = [one["tries"] for one in report["found"] if one["what"] == "both"]
    assert both[0]["outcome"] == "answers" and both[0]["seconds"] > 0.9  # a megabyte and more, at one a second


@pytest.mark.skipif(HAS_RIGHTS, reason="control groups can be made here: nothing is refused")
@pytest.mark.parametrize("options", [(), ("--read-mb-s", "1")])
def test_without_rights_the_command_says_so(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("memory-limit", str(BUNDLE), *options) == 1
    assert "no control group can be made" in capsys.readouterr().err


def test_a_group_without_the_controller_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="the controller is not switched on there"):
        control_groups.limit_memory(tmp_path, 1)
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path / "nothing")
    with pytest.raises(DeviceError, match="no control group can be made"), control_group("memory"):
        pass
