"""Torch modules that become graphs. What two families share lies here; a family's own tower lies in its folder."""
