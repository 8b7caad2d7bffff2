"""jina-clip-v2 and jina-clip-v1 on the export side: their configurations, their tensors, their towers."""
