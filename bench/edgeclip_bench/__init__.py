"""What a bundle costs on this machine: random-weight checkpoints, rivals, latency and memory."""

import edgeclip  # noqa: F401 - first of all, for it switches off onnxruntime's telemetry
