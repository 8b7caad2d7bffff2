"""mteb runs on a bundle, and its scores are those that the Encoder's vectors give when computed by hand.

The tasks are mteb's own kinds on data made here. Nothing is loaded from the network nor left in the home folder.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeclip import Encoder, Manifest
from edgeclip.errors import InputError, TruncationWarning
from edgeclip.host.installation import install_command
from edgeclip_bench.quality.mteb_model import BundleModel, describe, find_tasks, score_tasks
from tests.scenes.command import bench
from tests.scenes.mteb_tasks import (
    BODIES,
    CAPTIONS,
    FIRST,
    GRADES,
    IMAGES,
    QUERIES,
    SECOND,
    TITLES,
    by_hand,
    make_tasks,
    unit,
)

# mteb computes in float32 what is computed here in float64: 1.2e-7 apart at most.
TOLERANCE = 1e-6
QUERY_TASK = "retrieval.query"
IDS = {"task_metadata": SimpleNamespace(name="here", type="STS"), "hf_split": "test", "hf_subset": "default"}


@pytest.fixture(scope="module")
def mteb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """mteb, which makes a folder in the home folder when it is imported, unless told where."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MTEB_CACHE", "HF_HOME"):
            patch.setenv(name, str(folder / name))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import mteb

        yield mteb


@pytest.fixture(scope="module")
def tasks(mteb: ModuleType) -> dict[str, Any]:
    return make_tasks(mteb)


@pytest.mark.parametrize("options", [{}, {"truncate_dim": 16}, {"query_task": QUERY_TASK}], ids=str)
@pytest.mark.filterwarnings(  # mteb also computes precision, and random weights never choose some of the classes
    "ignore:Precision is ill-defined:sklearn.exceptions.UndefinedMetricWarning"
)
def test_scores_are_those_of_the_vectors(
    mteb: ModuleType, tasks: dict[str, Any], bundle: Path, encoder: Encoder, options: dict[str, Any]
) -> None:
    wanted = by_hand(encoder, options.get("truncate_dim"), options.get("query_task"))
    result = mteb.evaluate(BundleModel(bundle, device="cpu", **options), tasks.values(), cache=None)
    found = {task.task_name: task.get_score() for task in result.task_results}
    assert found == pytest.approx(wanted, abs=TOLERANCE)


def test_each_option_moves_the_scores_it_should(bundle: Path, encoder: Encoder) -> None:
    """Else the test above could not tell whether mteb's run heeded it."""
    plain = by_hand(encoder)
    cut, asked = by_hand(encoder, dim=16), by_hand(encoder, query_task=QUERY_TASK)
    assert all(plain[task] != cut[task] for task in plain)
    assert {task for task in plain if plain[task] != asked[task]} == {"Texts", "Pictures"}


@pytest.mark.parametrize("query_task", [None, QUERY_TASK])
def test_every_cosine_of_a_search_is_the_encoders(
    mteb: ModuleType, tasks: dict[str, Any], bundle: Path, encoder: Encoder, tmp_path: Path, query_task: str | None
) -> None:
    """The instruction goes before queries and before nothing else."""
    model = BundleModel(bundle, device="cpu", query_task=query_task)
    options = {"cache": None, "prediction_folder": tmp_path, "encode_kwargs": {"batch_size": 4}}
    mteb.evaluate(model, tasks["Texts"], **options)
    predicted = json.loads((tmp_path / "Texts_predictions.json").read_text())["default"]["test"]
    documents = [f"{title} {body}" for title, body in zip(TITLES, BODIES, strict=True)]
    queries = encoder.encode_text(QUERIES, task=query_task)
    cosines = unit(queries) @ unit(encoder.encode_text(documents)).T
    found = [[predicted[f"q{query}"][f"d{document}"] for document in range(41)] for query in range(9)]
    assert np.abs(np.array(found) - cosines).max() < TOLERANCE


@pytest.fixture(scope="module")
def model(mteb: ModuleType, bundle: Path) -> BundleModel:
    return BundleModel(bundle, device="cpu")


@pytest.mark.parametrize("sizes", [(23,), (1, 9, 2, 11), (4, 0, 19)])
def test_order_is_kept_over_batches_of_any_size(model: BundleModel, encoder: Encoder, sizes: tuple[int, ...]) -> None:
    texts, images = iter(FIRST), iter(IMAGES + IMAGES[:6])
    batches = [{"text": [next(texts) for _ in range(size)]} for size in sizes]
    pictures = [{"image": [next(images) for _ in range(size)]} for size in sizes]
    wanted = encoder.encode_text(FIRST)
    assert np.abs(model.encode(batches, **IDS) - wanted).max() < TOLERANCE
    wanted = encoder.encode_image(IMAGES + IMAGES[:6])
    assert np.abs(model.encode(pictures, **IDS, batch_size=3) - wanted).max() < TOLERANCE


def test_text_and_image_at_once_are_the_sum(model: BundleModel, encoder: Encoder) -> None:
    """As mteb's own wrappers of CLIP models have it, jina-clip-v2's among them."""
    batches = [{"text": CAPTIONS[:5], "image": IMAGES[:5]}, {"text": CAPTIONS[5:], "image": IMAGES[5:]}]
    wanted = encoder.encode_text(CAPTIONS) + encoder.encode_image(IMAGES)
    assert np.abs(model.encode(batches, **IDS) - wanted).max() < TOLERANCE


def test_nothing_gives_no_rows(model: BundleModel) -> None:
    assert model.encode([], **IDS).shape == (0, 64)


def test_truncated_vectors_are_cut_then_normalised(mteb: ModuleType, model: BundleModel, bundle: Path) -> None:
    short = BundleModel(bundle, device="cpu", truncate_dim=16)
    for batch in ({"text": FIRST}, {"image": IMAGES}):
        found = short.encode([batch], **IDS)
        assert found.shape == (len(found), 16)
        assert np.abs(found - unit(model.encode([batch], **IDS)[:, :16])).max() < TOLERANCE


def test_max_length_cuts_texts_and_says_so(mteb: ModuleType, bundle: Path, encoder: Encoder) -> None:
    short = BundleModel(bundle, device="cpu", max_length=4)
    with pytest.warns(TruncationWarning, match="of 23 texts were cut to 4 tokens"):
        found = short.encode([{"text": FIRST}], **IDS)
    with pytest.warns(TruncationWarning):
        wanted = encoder.encode_text(FIRST, max_length=4)
    assert np.abs(found - wanted).max() < TOLERANCE
    assert short.mteb_model_meta.max_tokens == 4


def test_audio_is_refused_by_name(model: BundleModel) -> None:
    with pytest.raises(InputError, match="task here has audio; a bundle reads text and image"):
        model.encode([{"text": ["a"], "audio": [None]}], **IDS)
    with pytest.raises(InputError, match="task AESDD has audio"):
        list(score_tasks(model, find_tasks(["AESDD"])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncate_dim": 65}, "truncate_dim is 65, wanted an int from 1 to 64"),
        ({"query_task": "query"}, "task is 'query', wanted None or one that the model knows: 'retrieval.query'"),
        ({"max_length": 1}, "max_length is 1"),
    ],
)
def test_a_wrong_option_is_said_before_any_data_is_loaded(
    mteb: ModuleType, bundle: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        BundleModel(bundle, device="cpu", **options)


def test_similarity_is_cosine(mteb: ModuleType, model: BundleModel) -> None:
    from mteb import EncoderProtocol

    assert isinstance(model, EncoderProtocol)
    draw = np.random.default_rng(0)
    one, other = (draw.normal(size=(3, 8)).astype(np.float32) for _ in range(2))
    cosines = unit(one) @ unit(other).T
    assert np.abs(model.similarity(one, other).numpy() - cosines).max() < TOLERANCE
    assert np.abs(model.similarity_pairwise(one, other).numpy() - np.diag(cosines)).max() < TOLERANCE


def test_the_description_is_the_manifests(mteb: ModuleType, bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    meta = describe(manifest, {})
    assert (meta.name, meta.adapted_from) == ("edgeclip/model", "model")
    assert (meta.embed_dim, meta.max_tokens) == (64, manifest.need_text().max_length)
    assert meta.n_parameters == sum(graph.parameters for graph in manifest.graphs.values())
    assert meta.memory_usage_mb == pytest.approx(manifest.weight_bytes / 1048576)
    assert (meta.framework, meta.modalities, meta.similarity_fn_name) == (["ONNX"], ["text", "image"], "cosine")
    assert (meta.license, meta.open_weights, meta.use_instructions) == ("not specified", True, False)
    source = replace(manifest.source, name="jinaai/jina-clip-v2", license="cc-by-nc-4.0")
    official = describe(replace(manifest, source=source), {"truncate_dim": 32, "query_task": QUERY_TASK})
    assert (official.name, official.adapted_from) == ("edgeclip/jina-clip-v2", "jinaai/jina-clip-v2")
    assert (official.license, official.embed_dim, official.use_instructions) == ("cc-by-nc-4.0", 32, True)


def test_kept_results_are_of_this_bundle_and_these_options(
    mteb: ModuleType, tasks: dict[str, Any], bundles: dict[str, Path], tmp_path: Path
) -> None:
    """mteb reads old results by name, revision and options: two bundles of one checkpoint share the name."""
    runs: list[tuple[str, dict[str, Any]]] = [
        ("cpu", {}),
        ("cpu", {"truncate_dim": 16}),
        ("cpu", {"query_task": QUERY_TASK}),
        ("cuda", {}),
    ]
    paths = set()
    for target, options in runs:
        meta = describe(Manifest.read(bundles[target]), options)
        paths.add(mteb.ResultCache(tmp_path).get_task_result_path("Texts", meta))
    assert len(paths) == len(runs)
    short = BundleModel(bundles["cpu"], device="cpu", truncate_dim=16)
    [first] = score_tasks(short, [tasks["Similarity"]], tmp_path)
    with short.encoder:  # closed below, so the second run can only read
        pass
    [second] = score_tasks(short, [tasks["Similarity"]], tmp_path)
    assert second.main_score == pytest.approx(first.main_score, abs=TOLERANCE)  # six decimals are kept
    assert (first.dim, first.metric, first.parts) == (16, "cosine_spearman", {"test/default": first.main_score})
    with pytest.raises(InputError, match="the encoder is closed"):
        list(score_tasks(short, [tasks["Texts"]], tmp_path))


@pytest.fixture
def sick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder holds data where mteb's task SICK-R looks for it; a folder goes before the Hub."""
    (tmp_path / "mteb" / "sickr-sts").mkdir(parents=True)
    rows = zip(FIRST, SECOND, GRADES, strict=True)
    lines = [json.dumps({"sentence1": one, "sentence2": two, "score": grade}) for one, two, grade in rows]
    (tmp_path / "mteb" / "sickr-sts" / "test.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_main_scores(
    mteb: ModuleType, bundle: Path, encoder: Encoder, sick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    widths = ("--truncate-dim", "64", "--truncate-dim", "16")
    wanted = [by_hand(encoder)["Similarity"], by_hand(encoder, dim=16)["Similarity"]]
    arguments = [str(bundle), "--tasks", "SICK-R", "--device", "cpu", "--out", str(sick / "out")]
    assert bench("mteb", *arguments, *widths) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["task", "main", "score", "64", "dim", "16", "dim"]
    assert row.split() == ["SICK-R", "cosine_spearman", *(f"{score:.4f}" for score in wanted)]
    assert bench("mteb", *arguments, *widths, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [score["main_score"] for score in report["scores"]] == pytest.approx(wanted, abs=TOLERANCE)
    assert [score["dim"] for score in report["scores"]] == [64, 16]
    assert (report["model"], report["device"], report["versions"]["mteb"]) == (
        "edgeclip/model",
        "cpu",
        mteb.__version__,
    )
    assert report["precision"] == {"text": "fp32", "vision": "fp32"}
    assert len(list((sick / "out").rglob("SICK-R.json"))) == 2


def test_wrong_usage_is_one_line(
    mteb: ModuleType, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*arguments: str) -> str:
        assert bench("mteb", *arguments) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err

    assert "'SICK-S' not found. Did you mean: 'SICK-R'?" in refusal(str(bundle), "--tasks", "SICK-S")
    assert "no such bundle" in refusal(str(tmp_path / "none"), "--tasks", "SICK-R")
    assert "truncate_dim is 65" in refusal(str(bundle), "--tasks", "SICK-R", "--truncate-dim", "65")


def test_offline_means_offline_and_the_home_folder_stays_clean(bundle: Path, sick: Path) -> None:
    """In a process of its own, for these variables are read when libraries are imported."""
    home = sick / "home"
    home.mkdir()
    places = {name: str(sick / name) for name in ("MTEB_CACHE", "HF_HOME")}
    program = """if True:
        import sys
        from edgeclip.cli import main
        for task in ("SICK-R", "BIOSSES"):
            print(main(["bench", "mteb", sys.argv[1], "--device", "cpu", "--tasks", task]))
    """
    env = os.environ | places | {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "error", "-c", program, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.stdout.splitlines()[2:] == ["0", "1"]
    assert done.stderr.splitlines()[-1].startswith("edgeclip: task BIOSSES: data or results cannot be read")
    assert "Offline" in done.stderr.splitlines()[-1]
    files = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    assert [path for path in files if path.parts[:2] != (".cache", "Microsoft")] == []  # onnxruntime's own
    assert list(Path(places["MTEB_CACHE"]).rglob("*")) == []  # without --out no result is kept


def test_without_mteb_the_extra_is_named(bundle: Path) -> None:
    program = """if True:
        import sys
        sys.modules["mteb"] = None
        from edgeclip.cli import main
        sys.exit(main(["bench", "mteb", sys.argv[1], "--tasks", "SICK-R"]))
    """
    done = subprocess.run([sys.executable, "-c", program, str(bundle)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"edgeclip: mteb is not installed: `{install_command('mteb')}`\n"
