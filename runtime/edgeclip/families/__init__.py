"""One module per family of models: how its texts and images are prepared."""
