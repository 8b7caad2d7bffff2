"""One module per family of models, which prepares its texts and images."""
