"""Passes that rewrite graphs for int8, int4 and fp16."""
