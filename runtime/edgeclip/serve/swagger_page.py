"""The page at /docs: Swagger UI on the OpenAPI document.

Swagger's files come from the package openapi-ui-bundles, which holds nothing else but such files, so the page works
without a network. None of its script is inline, so the policy of the page can forbid that.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from edgeclip.errors import MissingExtraError
from edgeclip.host.installation import install_command

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
_FILES = {"favicon.png": "favicon-32x32.png"}
# Everything is relative to where it was loaded from: a proxy may have put a prefix before the paths.
START_SCRIPT = """SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#docs", deepLinking: true, tryItOutEnabled: true,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
_DOCS_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>edgeclip API</title>
<link rel="stylesheet" href="{folder}swagger-ui.css"><link rel="icon" href="{folder}favicon.png">
</head>
<body>
<div id="docs"></div>
<script src="{folder}swagger-ui-bundle.js"></script><script src="{folder}start.js"></script>
</body>
</html>
"""


def docs_page(*, is_folder: bool) -> str:
    """The page at /docs; `is_folder` where its address ends in a slash, so its files have the same address."""
    return _DOCS_PAGE.replace("{folder}", "" if is_folder else "docs/")


@cache  # 1.5 MB, at the first call: a copy for each connection that does not read it would be gigabytes
def read_asset(name: str) -> bytes:
    """One of Swagger's files, or the icon; MissingExtraError without the package that brings them."""
    found = find_spec("openapi_ui_bundles")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(f"the page at /docs needs openapi-ui-bundles; `{install_command('serve')}`")
    folder = Path(found.submodule_search_locations[0]) / "swagger_ui" / "vendor"
    return (folder / _FILES.get(name, name)).read_bytes()
