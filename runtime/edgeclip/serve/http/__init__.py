"""HTTP: connections, bodies, keys, and what surrounds every request."""
