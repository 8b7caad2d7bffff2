"""The small trained document model: its pages and questions, what trains it, and what `edgeclip demo --pages` does.

Pages (`contents`) are drawn (`drawing`) and asked for in eight languages (`questions`). `train` makes the checkpoint
of them, `dataset` writes them as files to evaluate on, `run` is the demo.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent.parent / "edgeclip-pages"
