"""edgeclip: text and image embeddings at the edge.

    from edgeclip import Encoder

    with Encoder.open("jina-clip-v2") as encoder:
        texts = encoder.encode_text(["a red bicycle", "ein rotes Fahrrad"], truncate_dim=512)
        images = encoder.encode_image(["bike.jpg"], truncate_dim=512)
        similarity = texts @ images.T

To read the code, start at `edgeclip.encoder`.
"""

import os
from importlib import import_module

from edgeclip.errors import (
    BuildError,
    BundleError,
    CheckpointWarning,
    DeviceError,
    EdgeclipError,
    InputError,
    MissingExtraError,
    SkippedWarning,
    TruncationWarning,
    UnprovedWarning,
    WrongVectorsError,
)
from edgeclip.host.telemetry import disable_telemetry

TYPE_CHECKING = False  # as type checkers know it; typing itself would take longer than the rest
if TYPE_CHECKING:
    from edgeclip.encoder import Encoder
    from edgeclip.inputs.image_stream import EncodedImages, SkippedImage
    from edgeclip.manifest import Manifest
    from edgeclip.multi_vectors import MultiVectors

__version__ = "0.1.0"

disable_telemetry(os.environ)  # none of the imports above has loaded onnxruntime; whatever does comes later

__all__ = [
    "BuildError",
    "BundleError",
    "CheckpointWarning",
    "DeviceError",
    "EdgeclipError",
    "EncodedImages",
    "Encoder",
    "InputError",
    "Manifest",
    "MissingExtraError",
    "MultiVectors",
    "SkippedImage",
    "SkippedWarning",
    "TruncationWarning",
    "UnprovedWarning",
    "WrongVectorsError",
    "__version__",
]

# Loaded when they are first asked for, with numpy: the command line wants Ctrl-C to have its handler before.
_MODULES = {
    "EncodedImages": "edgeclip.inputs.image_stream",
    "Encoder": "edgeclip.encoder",
    "Manifest": "edgeclip.manifest",
    "MultiVectors": "edgeclip.multi_vectors",
    "SkippedImage": "edgeclip.inputs.image_stream",
}

if not TYPE_CHECKING:  # else every misspelt name would be one of Any

    def __getattr__(name: str) -> object:
        """One of the names that are loaded late."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            found = globals()[name] = getattr(import_module(_MODULES[name]), name)
        except ImportError as error:
            from edgeclip.host.import_errors import explain_import

            raise explain_import(error) or error from error
        return found

    def __dir__() -> list[str]:
        """The names of the module, those that are loaded late among them."""
        return sorted({*globals(), *_MODULES})
