"""An HTTP server to put behind the examples. It answers with its name, the request, and the headers that came with it.

python app.py PORT [NAME]
"""

from __future__ import annotations

import sys

from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    """The request as it arrived here, after whatever the gateway made of it."""
    headers = sorted(f"  {key.lower()}: {value}\n" for key, value in request.headers.items())
    body = f"{NAME} answers {request.method} {request.path_qs}\n{''.join(headers)}"
    return web.Response(text=body, headers={"Server": "app.py", "X-App": NAME})


if __name__ == "__main__":
    PORT, NAME = int(sys.argv[1]), (sys.argv[2:] or ["app"])[0]
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=PORT, print=None, access_log=None)
