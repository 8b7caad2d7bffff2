"""Images of unknown clients: fetched from allowed addresses and decoded within limits."""
