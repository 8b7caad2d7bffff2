"""The benchmarks and tools that stand beside `edgeclip bench BUNDLE`: `edgeclip bench CASE ...`, in one table.

A case is a module of this package with two functions: add_arguments(parser) says what it takes, and run(options)
does the work and returns the exit status. It is loaded when it is asked for, and may import what its extra brings.
"""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from edgeclip.host.installation import needs_extra


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A module of this package, what it does in one line, and the extra that has its packages."""

    module: str
    help: str
    extra: str = "bench"

    def load(self) -> ModuleType:
        """The module; MissingExtraError where a package that it needs is not installed."""
        with needs_extra(self.extra):
            return import_module(f"edgeclip_bench.{self.module}")


CASES = {
    "compare": Case(module="latency.compare", help="whether one run is slower than another; exits 1 if so"),
    "cold-start": Case(module="latency.cold_start", help="time from the start of a process to its first vector"),
    "side-by-side": Case(
        module="latency.side_by_side", help="bundles of any family or version of edgeclip, in turns"
    ),
    "build-cost": Case(module="latency.build_cost", help="time and memory of an export or a quantisation"),
    "memory-limit": Case(
        module="latency.memory_limit", help="the smallest memory limit that answers; or a slow disk"
    ),
    "image-folder": Case(module="latency.image_folder", help="what reading and decoding files adds to the graph"),
    "offline-texts": Case(module="latency.offline_texts", help="batches of one length against padded batches"),
    "plain-export": Case(module="rivals.plain_export", help="a bundle against a plain torch.onnx.export"),
    "full-size": Case(module="latency.full_size", help="export, int8 and latency of 865 M random parameters"),
    "rivals": Case(module="rivals.run", help="bundles against other quantisers and frameworks"),
    "service-load": Case(module="load.service_load", help="load and latency of a service", extra="bench,serve"),
    "service-soak": Case(module="load.service_soak", help="a service under hostile clients", extra="bench,serve"),
    "memory-soak": Case(module="load.memory_soak", help="whether memory stays flat for minutes"),
    "gpu-graphs": Case(module="gpu.graphs", help="latency and parity of the graphs on a GPU, PyTorch beside them"),
    "mteb": Case(module="quality.mteb_model", help="mteb's tasks on a bundle", extra="mteb"),
    "damage": Case(module="quality.damage", help="what an evaluation sees of exports broken on purpose"),
    "page-damage": Case(module="quality.page_damage", help="what page retrieval loses by mistakes on purpose"),
    "random-checkpoint": Case(module="families.random_checkpoint", help="write a checkpoint of random weights"),
    "train-demo": Case(module="demo.train", help="train the small model that ships with the package"),
    "train-pages": Case(module="demo.pages.train", help="train the small document model that ships with the package"),
    "draw-pages": Case(module="demo.pages.dataset", help="write drawn pages with questions in every language"),
    "draw-scenes": Case(module="demo.dataset", help="write drawn pictures with captions in every language"),
    "draw-samples": Case(module="demo.samples", help="draw the sample pictures of the service's page"),
}
