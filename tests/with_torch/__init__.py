"""Tests of the runtime that need more than its wheel: torch, onnx, scipy or another package of the house."""
