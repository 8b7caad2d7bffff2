"""Images from strangers: fetched from allowed addresses and decoded within limits."""
