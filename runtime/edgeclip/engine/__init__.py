"""The engine: devices, providers, onnxruntime's sessions and batch sizes."""
