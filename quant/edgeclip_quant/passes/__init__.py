"""Rewriting graphs for int8, int4 and fp16."""
