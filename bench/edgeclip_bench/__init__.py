"""Benchmarks, retrieval evaluation, comparison with other runtimes, and the demo: what a bundle costs and how well it
finds.
"""

import edgeclip  # noqa: F401 - first of all, for it switches off onnxruntime's telemetry
