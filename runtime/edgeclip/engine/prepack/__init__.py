"""Weights packed once for this machine and mapped by every process."""
