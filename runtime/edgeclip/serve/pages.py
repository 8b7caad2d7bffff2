"""The pages for browsers: the search page at /, and the API's documentation at /docs."""

import asyncio
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeclip.serve.http.middleware import PAGE_POLICY
from edgeclip.serve.swagger_page import ASSETS, START_SCRIPT, docs_page, read_asset

_WEB = Path(__file__).with_name("web")
_WEB_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
_DOCS_POLICY = PAGE_POLICY + "; style-src 'self' 'unsafe-inline'"  # Swagger sets styles as it draws


def page_routes() -> list[Route]:
    """The routes of the pages and their files."""
    pages = _read_pages(_WEB)

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in pages:
            raise HTTPException(404)
        data, kind = pages[name]
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    async def docs(request: Request) -> Response:
        document = docs_page(is_folder=request.scope["edgeclip.path"].endswith("/"))
        return Response(document, media_type="text/html", headers={"Content-Security-Policy": _DOCS_POLICY})

    async def docs_asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "start.js":
            return Response(START_SCRIPT, media_type="text/javascript")
        if name not in ASSETS:
            raise HTTPException(404)
        data = await asyncio.to_thread(read_asset, name)
        return Response(data, media_type=ASSETS[name], headers={"Cache-Control": "max-age=86400"})

    shown = {"/docs": docs, "/docs/{name}": docs_asset, "/": page, "/web/{name}": page}
    return [Route(path, endpoint, methods=["GET"]) for path, endpoint in shown.items()]


def _read_pages(folder: Path) -> dict[str, tuple[bytes, str]]:
    """The files of the web page by name; none where the folder is not there."""
    if not folder.is_dir():
        return {}
    return {
        path.name: (path.read_bytes(), _WEB_TYPES[path.suffix])
        for path in sorted(folder.iterdir())
        if path.suffix in _WEB_TYPES
    }
