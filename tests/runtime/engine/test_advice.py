"""Each kind of processor is told which bundle to run, and what 4 bits cost on it."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgeclip.engine.advice import advise, advise_here, is_guarded
from edgeclip.engine.products import Products
from edgeclip.host.processor import visible_features
from edgeclip.manifest import Manifest

VNNI = Products(adds_in_16_bits=False, pairs_overflow=False, wraps_beside_zero=False, fuses=True)
NO_VNNI = Products(adds_in_16_bits=True, pairs_overflow=False, wraps_beside_zero=False, fuses=True)
OLD = Products(adds_in_16_bits=False, pairs_overflow=False, wraps_beside_zero=False, fuses=False)
OLD_ARM = Products(adds_in_16_bits=False, pairs_overflow=False, wraps_beside_zero=True, fuses=True)
AVX = frozenset(("sse41", "avx"))


@pytest.mark.parametrize(
    ("products", "machine", "features", "bundle", "options", "words"),
    [
        (VNNI, "x86_64", AVX | {"avx2", "fma3"}, "int8", "--to int8", "x86 with VNNI"),
        (VNNI, "AMD64", frozenset(), "int8", "--to int8", "x86 with VNNI"),  # Windows' name
        (NO_VNNI, "x86_64", AVX, "int8 of 7 bits", "--to int8 --cpu avx2", "x86 without VNNI"),
        (OLD, "x86_64", AVX, "fp32", "", "with AVX and without AVX2"),
        (OLD, "x86_64", frozenset(("sse41",)), "int8", "--to int8", "x86 without AVX"),
        (VNNI, "aarch64", frozenset(("asimd", "asimddp")), "int8", "--to int8", "arm64 with dotprod"),
        (OLD_ARM, "arm64", frozenset(("asimd",)), "int8", "--to int8", "arm64 without dotprod"),
        (VNNI, "riscv64", frozenset(), "int8", "--to int8", "riscv64 was not timed"),
    ],
)
def test_each_kind(
    products: Products, machine: str, features: frozenset[str], bundle: str, options: str, words: str
) -> None:
    found = advise(products, machine, features)
    assert (found.bundle, found.options) == (bundle, options)
    assert words in found.why and words in str(found)
    assert found.choice == (f"{bundle} (edgeclip quantize BUNDLE OUT {options})" if options else bundle)


@pytest.mark.parametrize("features", [AVX, frozenset(("sse41",))])
def test_where_4_bits_are_slowest_it_is_said(features: frozenset[str]) -> None:
    assert "no int4: its 4-bit blocks take 11 times fp32's time at one row" in str(advise(OLD, "x86_64", features))
    assert "no int4" not in str(advise(NO_VNNI, "x86_64", features))


def test_openvino_is_named_where_it_was_timed() -> None:
    assert "1.05 to 1.08 times as fast through OpenVINO" in str(advise(VNNI, "x86_64", AVX))
    others = (NO_VNNI, "x86_64", AVX), (OLD, "x86_64", AVX), (VNNI, "aarch64", AVX)
    assert not any("OpenVINO" in str(advise(*one)) for one in others)


def test_here() -> None:
    assert advise_here().bundle in ("fp32", "int8", "int8 of 7 bits")
    assert all(feature == feature.lower() for feature in visible_features())


def test_a_bundle_that_needs_the_guard_is_found(int8_bundle: Path, bundle: Path) -> None:
    manifest = Manifest.read(int8_bundle)
    assert is_guarded(manifest, NO_VNNI) and not is_guarded(manifest, VNNI)
    assert not is_guarded(Manifest.read(bundle), NO_VNNI)
    kernels = {"int7 per row": 3}
    narrow = replace(manifest, graphs={name: replace(one, kernels=kernels) for name, one in manifest.graphs.items()})
    assert not is_guarded(narrow, NO_VNNI) and is_guarded(narrow, replace(NO_VNNI, pairs_overflow=True))
