"""The server: on this computer only, for its own page only."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from atomtune.devices import use_idle_cores
from atomtune.jobs import Queue
from atomtune.origins import HOST, OwnOriginOnly
from atomtune.workspace import LARGEST, Workspace


def serve(runs: Sequence[Path], base: str, port: int, folder: Path) -> None:
    """Open the studio at http://127.0.0.1:PORT, until Ctrl-C. Raises `UserError`."""
    workspace = Workspace(folder, runs)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(workspace.cache)}  # read when imported
    from starlette.middleware import Middleware

    from atomtune.easel import Easel
    from atomtune.sessions import keep_memory_flat
    from atomtune.studio.page import KEYS, STYLE, page, theme

    print(f"Opening the studio with {base} …", flush=True)
    keep_memory_flat()
    queue = Queue(workspace.jobs)
    blocks = page(easel := Easel(base), workspace, queue)
    use_idle_cores(easel.model, but=1)
    blocks.queue(api_open=False).launch(
        server_name=HOST, server_port=port, share=False, prevent_thread_lock=True, quiet=True, max_file_size=LARGEST,
        allowed_paths=[], footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
        mcp_server=False, theme=theme(), css=STYLE, js=KEYS,
        app_kwargs={"middleware": [Middleware(OwnOriginOnly, port=port)]},
    )  # fmt: skip
    threading.Thread(target=_advance, args=(queue,), daemon=True).start()
    print(f"The studio is at http://{HOST}:{port} (Ctrl-C ends it; jobs go on).", flush=True)
    blocks.block_thread()


def _advance(queue: Queue) -> None:
    """Start jobs as others end, as long as the studio runs."""
    while True:
        queue.advance()
        time.sleep(1)
