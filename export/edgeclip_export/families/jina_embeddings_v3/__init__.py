"""jina-embeddings-v3 on the export side: its configuration, its two layouts, and the plan of its one graph."""
