"""Graphs at work: devices, providers, onnxruntime's sessions, batch sizes."""
