"""Choose kernels for layers and recipes for a bundle."""
