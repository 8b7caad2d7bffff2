"""One module per family of models: checkpoints of random weights in its official layout."""
