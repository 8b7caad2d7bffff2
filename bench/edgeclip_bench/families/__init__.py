"""One module per family of models, which writes checkpoints of random weights in the family's official layout."""
