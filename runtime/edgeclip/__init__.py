"""edgeclip: text and image embeddings at the edge.

    from edgeclip import Encoder

    with Encoder.open("jina-clip-v2") as encoder:
        texts = encoder.encode_text(["a red bicycle", "ein rotes Fahrrad"], truncate_dim=512)
        images = encoder.encode_image(["bike.jpg"], truncate_dim=512)
        similarity = texts @ images.T

The way of a text and of an image can be followed from `edgeclip.encoder`.
"""

from edgeclip.encoder import Encoder
from edgeclip.errors import (
    BuildError,
    BundleError,
    DeviceError,
    EdgeclipError,
    InputError,
    MissingExtraError,
    TruncationWarning,
    UnprovedWarning,
)
from edgeclip.manifest import Manifest

__version__ = "0.1.0"

__all__ = [
    "BuildError",
    "BundleError",
    "DeviceError",
    "EdgeclipError",
    "Encoder",
    "InputError",
    "Manifest",
    "MissingExtraError",
    "TruncationWarning",
    "UnprovedWarning",
    "__version__",
]
