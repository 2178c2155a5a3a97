"""The server: on this computer only, for pages of its own origin only."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

HOST = "127.0.0.1"


class OwnOriginOnly:
    """ASGI middleware that refuses requests to another host name than this computer's own, as after DNS rebinding, and
    requests from pages of another origin, of whatever method: a form on another page may post without asking."""

    def __init__(self, app: Any, port: int) -> None:
        self.app = app
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            site = headers.get("sec-fetch-site", "none")
            if (
                headers.get("host") not in self.hosts
                or headers.get("origin", next(iter(self.origins))) not in self.origins
                or (site not in ("same-origin", "none") and scope.get("method") != "GET")
            ):
                await _refuse(scope, send)
                return
        await self.app(scope, receive, send)


async def _refuse(scope: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    head = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": head})
    await send({"type": "http.response.body", "body": b"atomtune studio answers only pages of its own.\n"})


def serve(runs: Sequence[Path], base: str, port: int, folder: Path, block: bool = True) -> Any:
    """Open the studio at http://127.0.0.1:PORT; until Ctrl-C if `block`. Raises `UserError`."""
    from atomtune.workspace import LARGEST, Workspace

    workspace = Workspace(folder, runs)
    os.environ["GRADIO_TEMP_DIR"] = str(workspace.cache)  # before gradio makes a component
    from starlette.middleware import Middleware

    from atomtune.easel import Easel
    from atomtune.jobs import Queue
    from atomtune.studio.page import STYLE, page, theme

    queue = Queue(workspace.jobs)
    blocks = page(Easel(base), workspace, queue)
    blocks.queue(api_open=False)
    blocks.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        max_file_size=LARGEST,
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        app_kwargs={"middleware": [Middleware(OwnOriginOnly, port=port)]},
        theme=theme(),
        css=STYLE,
    )
    threading.Thread(target=_advance, args=(queue,), daemon=True).start()
    print(f"The studio is at http://{HOST}:{port} (Ctrl-C ends it; jobs go on).", flush=True)
    if block:
        blocks.block_thread()
    return blocks


def _advance(queue: Any) -> None:
    """Start jobs as others end, as long as the studio runs."""
    while True:
        queue.advance()
        time.sleep(1)
