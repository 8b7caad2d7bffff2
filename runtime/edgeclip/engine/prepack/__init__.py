"""Weights packed once for this machine's processor and mapped by every process."""
