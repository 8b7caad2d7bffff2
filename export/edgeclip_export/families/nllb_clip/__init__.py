"""nllb-clip-siglip on the export side: open_clip's configuration, its tensors, its tokenizer with language codes."""
