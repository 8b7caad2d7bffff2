"""Choosing kernels for layers and recipes for a bundle."""
