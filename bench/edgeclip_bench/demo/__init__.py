"""The demo and its small trained model: the checkpoint, all that makes it, and what `edgeclip demo` does with it.

Scenes (`scenes`) are drawn (`drawing`) and described in ten languages (`captions`). `train` makes the checkpoint of
them, `dataset` writes them as files to evaluate on, `run` is the demo.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "edgeclip-scenes"
