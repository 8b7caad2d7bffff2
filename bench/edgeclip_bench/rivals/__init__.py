"""Other runtimes and quantisers on the same checkpoint, measured in the same run."""
