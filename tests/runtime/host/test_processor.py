"""The processor has one name and one list of features on x86 and ARM, and a name where no file says it."""

from pathlib import Path

import pytest

from edgeclip.host.processor import processor_features, processor_name, read_processor

X86 = "model name\t: AMD EPYC\ncpu MHz\t: 2400.1\nflags\t: fpu avx2\n\nmodel name\t: AMD\nflags\t: fpu\n"
ARM = "CPU part\t: 0xd0b\nFeatures\t: fp asimd i8mm\n\nModel\t: Raspberry Pi 5\n"


@pytest.mark.parametrize(
    ("text", "name", "features", "identity"),
    [
        (X86, "AMD EPYC", {"fpu", "avx2"}, "AMD EPYC\nfpu avx2"),
        (ARM, "Raspberry Pi 5", {"fp", "asimd", "i8mm"}, "0xd0b\nfp asimd i8mm"),
    ],
)
def test_the_first_processor_is_read(tmp_path: Path, text: str, name: str, features: set[str], identity: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert processor_name(cpuinfo) == name
    assert processor_features(cpuinfo) == features
    assert read_processor(cpuinfo) == identity


def test_without_cpuinfo_the_architecture_is_the_name(tmp_path: Path) -> None:
    assert processor_name(tmp_path / "none") == read_processor(tmp_path / "none") != ""
    assert processor_features(tmp_path / "none") == frozenset()
