"""jina-embeddings-v4: Qwen2.5-VL with three LoRA adapters, one vector of an input or one of each of its tokens."""
