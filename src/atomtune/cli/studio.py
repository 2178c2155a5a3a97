"""`atomtune studio`: learn, look, turn the knobs, in a browser."""

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from atomtune.errors import UserError


def studio(
    *runs: Annotated[Path, Parameter(name="RUN")],
    base: str = "moji",
    port: int = 7860,
    workspace: Path = Path("runs"),
) -> None:
    """Open the studio, a page in your browser, for learning a subject, looking at atoms, and turning them.

    It needs the extra "studio": pip install "atomtune[studio]". The page is for this computer only, and needs no
    network. Training started there are ordinary runs, which go on when the page or the studio is closed.

    Args:
        runs: Runs or adapters to show beside those of the workspace.
        base: Base model: "moji", a folder, or a hub name.
        port: The studio is at http://127.0.0.1:PORT.
        workspace: Folder of runs. The studio reads and writes there, and nowhere else.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"--port must be from 1 to 65535, got {port}.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port {port} cannot be used ({error.strerror}): give another with --port.") from error
    if find_spec("gradio") is None:
        raise UserError("the studio needs gradio: pip install 'atomtune[studio]'.")
    from atomtune.studio.server import serve

    serve(runs, base, port, workspace)
