"""jina-clip-v2 on the export side: its configuration, its tensors, its two towers."""
