"""For a server on this computer: answer its own pages, and nobody else's.

A page of another site may post a form to http://127.0.0.1 without asking (its browser only hides the answer), and may
give a name of its own the address 127.0.0.1 (DNS rebinding). The first is seen by the Origin header and by
Sec-Fetch-Site, which pages cannot set, the second by the Host header.
"""

from __future__ import annotations

from typing import Any

HOST = "127.0.0.1"


class OwnOriginOnly:
    """ASGI middleware that refuses, with status 403, requests to another host than this computer's own on this port,
    and requests from pages of another origin."""

    def __init__(self, app: Any, port: int) -> None:
        self.app = app
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and not self._own(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            head = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": head})
            await send({"type": "http.response.body", "body": b"This server answers only pages of its own.\n"})
            return
        await self.app(scope, receive, send)

    def _own(self, scope: Any) -> bool:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        from_here = headers.get("sec-fetch-site", "none") in ("same-origin", "none")
        followed = scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"  # a link to the page
        own_origin = origin is None or origin.removeprefix("http://") in self.hosts
        return headers.get("host") in self.hosts and own_origin and (from_here or followed)
