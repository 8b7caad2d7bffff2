"""edgeclip: text and image embeddings at the edge.

    from edgeclip import Encoder

    with Encoder.open("jina-clip-v2") as encoder:
        texts = encoder.encode_text(["a red bicycle", "ein rotes Fahrrad"], truncate_dim=512)
        images = encoder.encode_image(["bike.jpg"], truncate_dim=512)
        similarity = texts @ images.T

To read the code, start at `edgeclip.encoder`.
"""

import os

from edgeclip.encoder import Encoder
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
