"""Retrieval quality: recall, nDCG, Spearman and zero-shot accuracy of a bundle, per truncate_dim and language."""
