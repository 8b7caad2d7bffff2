"""Find the route that a request's path means: values in, values out.

Clients put the API's base and their own path together in several ways: with /v1 or without, with one slash too many
or at the end. All of them are answered as they are, never by a redirect: its target would come from the Host header,
which any client can write.
"""

import re

_WITHOUT_VERSION = ("/embeddings", "/models")


def route_path(path: str, prefix: str = "") -> str:
    """The path as the routes have it: without `prefix`, which a proxy left, with /v1, without superfluous slashes."""
    if "//" in path:
        path = re.sub("/{2,}", "/", path)
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        path = path[len(prefix) :]
    path = path.rstrip("/") or "/"
    if path in _WITHOUT_VERSION or path.startswith("/models/"):
        return f"/v1{path}"
    return path
