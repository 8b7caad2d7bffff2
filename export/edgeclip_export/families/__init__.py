"""One folder per family of models: its configuration, tensors and towers."""
