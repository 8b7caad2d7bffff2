"""HTTP: connections, bodies, keys, logs and headers of every request."""
