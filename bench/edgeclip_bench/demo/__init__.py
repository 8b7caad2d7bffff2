"""The small trained model that ships with the package: its checkpoint, and everything that makes it.

Scenes (`scenes`) are drawn (`pictures`) and told in ten languages (`captions`); `train` makes the checkpoint
of them, `dataset` writes them as files to evaluate on.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "edgeclip-scenes"

__all__ = ["CHECKPOINT"]
