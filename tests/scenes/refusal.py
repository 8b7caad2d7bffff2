"""What a refused quantisation says."""

from pathlib import Path

import pytest

from edgeclip import BuildError
from edgeclip.manifest import Precision
from edgeclip_quant import quantize_bundle


def refusal(bundle: Path, out: Path, to: Precision = "int8", **options: object) -> str:
    """The one line that nothing was written with."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(BuildError) as caught:
        quantize_bundle(bundle, out, to=to, **options)  # type: ignore[arg-type]
    assert sorted(out.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message
    return message
