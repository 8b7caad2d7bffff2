"""Measure what a smaller bundle lost."""
