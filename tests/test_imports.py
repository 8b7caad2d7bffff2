"""Imports run one way, as the house is drawn, and whoever only encodes loads nothing that is heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "edgeclip": ROOT / "runtime" / "edgeclip",
    "edgeclip_graph": ROOT / "export" / "edgeclip_graph",
    "edgeclip_export": ROOT / "export" / "edgeclip_export",
    "edgeclip_quant": ROOT / "quant" / "edgeclip_quant",
    "edgeclip_bench": ROOT / "bench" / "edgeclip_bench",
}
HEAVY = ("torch", "onnx", "onnxscript", "onnx_ir", "PIL", "huggingface_hub", "msgspec", "safetensors", "onnxruntime")
# What a runtime module may import at its top beside the standard library.
LEAN = {"edgeclip", "numpy", "tokenizers"}
# What modules may import besides that only the service's application leads to; a running service alone loads them.
SERVED = {"msgspec", "orjson", "starlette"}
# Which of the other packages each of these may import, itself included.
MAY_IMPORT = {
    "edgeclip_graph": {"edgeclip_graph"},
    "edgeclip_export": {"edgeclip_export", "edgeclip_graph"},
    "edgeclip_quant": {"edgeclip_quant", "edgeclip_graph"},
}
# What of the runtime they may import: what a bundle is, and how a session is opened.
SHARED = (
    "bundle.",
    "engine.devices",
    "engine.ort",
    "engine.paired_timing",
    "engine.products",
    "engine.providers",
    "errors",
    "host.installation",
    "host.malloc_bounds",
    "host.processor",
    "manifest",
)
# What quant may import besides: it gives the graphs the items that an Encoder would, and compares what they give.
FEEDING = ("engine.adapters", "families", "inputs.tokenization", "multi_vectors")
# The packages and modules of the runtime in the order of its layers: each imports from those above it alone.
LAYERS = (
    ("errors",),
    ("manifest", "host", "multi_vectors", "progress", "tables"),
    ("inputs",),
    ("families",),
    ("bundle",),
    ("engine",),
    ("open_bundle",),
    ("encoder",),
    ("doctor", "triton", "serve"),
    ("cli",),
    ("__main__",),
)


def modules(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


ALL = [path for package in PACKAGES for path in modules(package)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path, *, is_top_only: bool = False) -> Iterator[str]:
    """The names that a file imports, in full: `from a.b import c` is a.b.c, a relative one begins with a dot."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in loaded_with(tree) if is_top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{name.name}" for name in node.names)


def loaded_with(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is loaded: not in functions, nor for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        is_for_checkers = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not is_for_checkers and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from loaded_with(node)


def test_the_house_is_seen() -> None:
    """Else the tests below would pass on nothing."""
    for package in PACKAGES:
        assert modules(package), package
    assert "edgeclip.manifest.Manifest" in set(imports(PACKAGES["edgeclip"] / "open_bundle.py"))
    assert "PIL.Image" in set(imports(PACKAGES["edgeclip"] / "inputs" / "square.py"))
    assert "PIL.Image" not in set(imports(PACKAGES["edgeclip"] / "inputs" / "square.py", is_top_only=True))


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_imports_are_absolute(path: Path) -> None:
    assert [name for name in imports(path) if name.startswith(".")] == []


@pytest.mark.parametrize("path", modules("edgeclip"), ids=name_of)
def test_the_runtime_imports_no_other_package_of_the_house(path: Path) -> None:
    """Its command line does so inside of the verb that needs them, when that verb runs."""
    is_verb = path.parent.name == "cli"
    found = {name.partition(".")[0] for name in imports(path, is_top_only=is_verb)}
    assert found & set(PACKAGES) <= {"edgeclip"}


@pytest.fixture(scope="module")
def loaded_without_service() -> set[Path]:
    """Every module of the runtime that is loaded with one outside the service, or with what starts the service."""
    service = PACKAGES["edgeclip"] / "serve"
    left = [path for path in modules("edgeclip") if service not in path.parents]
    left += [service / "run.py", service / "settings.py"]
    found: set[Path] = set()
    while left:
        path = left.pop()
        if path.is_file() and path not in found:
            found.add(path)
            for name in imports(path, is_top_only=True):
                parts = name.split(".")[1:]  # the last one may be a name in the module
                for file in (parts, parts[:-1]):
                    left.append(PACKAGES["edgeclip"].joinpath(*file).with_suffix(".py"))
    return found


def test_what_starts_the_service_is_seen(loaded_without_service: set[Path]) -> None:
    """Else the test below would allow too much."""
    service = PACKAGES["edgeclip"] / "serve"
    assert {service / "run.py", service / "http" / "connections.py", service / "errors.py"} <= loaded_without_service
    assert service / "app.py" not in loaded_without_service


@pytest.mark.parametrize("path", modules("edgeclip"), ids=name_of)
def test_the_runtime_loads_little(path: Path, loaded_without_service: set[Path]) -> None:
    top = {name.partition(".")[0] for name in imports(path, is_top_only=True)}
    assert top <= LEAN | sys.stdlib_module_names | (set() if path in loaded_without_service else SERVED)


def layer_of(name: str) -> int:
    """The layer of a package or module of the runtime, counted from above."""
    (layer,) = (number for number, names in enumerate(LAYERS) if name in names)
    return layer


def place_of(path: Path) -> str:
    """The package or module of the runtime that a file belongs to."""
    return path.relative_to(PACKAGES["edgeclip"]).parts[0].removesuffix(".py")


def test_every_part_of_the_runtime_has_a_layer() -> None:
    found = {place_of(path) for path in modules("edgeclip")} - {"__init__"}
    assert found == {name for names in LAYERS for name in names}


@pytest.mark.parametrize("path", modules("edgeclip"), ids=name_of)
def test_the_runtime_is_layered(path: Path) -> None:
    """No package imports one below it, at its top or in a function, so there is no circle between packages.

    `edgeclip` itself, which holds what users import, is below all but the command line.
    """
    own, package = place_of(path), PACKAGES["edgeclip"]
    if own == "__init__":
        return
    for name in imports(path):
        first, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        is_part = other != "" and ((package / other).is_dir() or (package / f"{other}.py").is_file())
        if first != "edgeclip" or other == own:
            continue
        if is_part:
            assert layer_of(other) < layer_of(own), name
        else:  # a name of the package's own file
            assert layer_of(own) >= layer_of("serve"), name


@pytest.mark.parametrize("path", [path for package in MAY_IMPORT for path in modules(package)], ids=name_of)
def test_graph_export_and_quant_import_one_way(path: Path) -> None:
    """Of the runtime they import `SHARED` alone, quant `FEEDING` too; export and quant do not import each other."""
    own = path.relative_to(ROOT).parts[1]
    shared = (*SHARED, *(FEEDING if own == "edgeclip_quant" else ()))
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == "edgeclip":
            assert rest.startswith(shared), name
        elif first in PACKAGES:
            assert first in MAY_IMPORT[own], name


@pytest.mark.parametrize("path", modules("edgeclip_graph"), ids=name_of)
def test_the_graph_package_imports_no_torch(path: Path) -> None:
    """Quantising needs no torch, and it rewrites graphs with this package."""
    assert "torch" not in {name.partition(".")[0] for name in imports(path)}


def test_all_of_the_graph_package_loads_without_torch() -> None:
    """In a process of its own; a package that one of its modules imports could bring torch along."""
    folder = PACKAGES["edgeclip_graph"]
    names = [".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in modules("edgeclip_graph")]
    program = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("path", modules("edgeclip_bench"), ids=name_of)
def test_bench_imports_what_the_others_make_public(path: Path) -> None:
    for name in imports(path):
        if name.partition(".")[0] != "edgeclip_bench":
            assert not any(part.startswith("_") and not part.endswith("__") for part in name.split(".")), name
            assert not name.startswith("edgeclip.cli"), name  # the command line imports benchmarks, never the reverse


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_no_file_is_named_for_leftovers(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "helper", "base", "common", "misc")
    assert path.parent.name not in ("utils", "helpers", "common")


@pytest.mark.parametrize("module", ["edgeclip", "edgeclip.cli", "edgeclip.cli.embed", "edgeclip.cli.check"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    """In a process of its own: here the tests have loaded everything."""
    program = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_encoding_texts_loads_onnxruntime_alone(bundle: Path) -> None:
    program = f"""if True:
        import sys
        from edgeclip import Encoder
        with Encoder.open(sys.argv[1], device="cpu") as encoder:
            encoder.encode_text("a")
        print(*sorted(set({HEAVY}) & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["onnxruntime"]


def needs(path: Path, *, is_scene: bool = False) -> Iterator[str]:
    """The packages that a file of tests imports, with those of the scenes and tests that it loads."""
    for name in imports(path, is_top_only=is_scene):
        package = name.partition(".")[0]
        if package != "tests":
            yield package
        elif name.startswith(("tests.scenes.", "tests.runtime.")):
            file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            module = file if file.is_file() else file.parent.with_suffix(".py")  # `name` is of something in it
            if module.is_file():
                yield from needs(module, is_scene=True)


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "runtime").rglob("*.py")), ids=name_of)
def test_tests_of_the_runtime_need_the_lean_wheel_alone(path: Path) -> None:
    """And Pillow and pytest, so that a board can run them; what needs more lies in tests/with_torch."""
    allowed = {"edgeclip", "numpy", "tokenizers", "onnxruntime", "PIL", "pytest"}
    assert set(needs(path)) <= allowed | sys.stdlib_module_names
