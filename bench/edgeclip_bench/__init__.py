"""Benchmarks of a bundle, its retrieval quality, comparisons with other runtimes, and the demo."""

import edgeclip  # noqa: F401 - first of all, for it switches off onnxruntime's telemetry
