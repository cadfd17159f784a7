"""Serve a trace on the loopback interface for the page of ui.perfetto.dev; nothing is uploaded."""

from __future__ import annotations

import http.server
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torchfab.core.console import write_err, write_out
from torchfab.core.errors import TorchfabError

ORIGIN = "https://ui.perfetto.dev"
# Its Content-Security-Policy lets the page connect to no other port of this machine.
PORT = 9001


def handler_of(path: Path, name: str) -> type[http.server.BaseHTTPRequestHandler]:
    """Return the handler of requests for one file.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        Its path in the URL, without `/`; nothing else is served.

    Returns
    -------
    type
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Send the file to the page of Perfetto."""
            if self.path != f"/{name}":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(path.stat().st_size))
            self._allow()
            self.end_headers()
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    self.wfile.write(part)

        def do_OPTIONS(self) -> None:
            """Let the page of Perfetto ask."""
            self.send_response(204)
            self._allow()
            self.send_header("Access-Control-Allow-Private-Network", "true")
            self.end_headers()

        def _allow(self) -> None:
            self.send_header("Access-Control-Allow-Origin", ORIGIN)
            self.send_header("Cache-Control", "no-cache")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Print nothing."""

    return Handler


def serve(path: Path) -> None:
    """Serve a trace until Ctrl-C, and print the address to open.

    Parameters
    ----------
    path : Path
        The trace.

    Raises
    ------
    TorchfabError
        The port is in use.
    """
    name = f"{secrets.token_urlsafe(12)}/{quote(path.name)}"
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), handler_of(path, name))
    except OSError as error:
        fix = f"end what listens there, or open {ORIGIN} and choose the file {path}"
        raise TorchfabError(f"cannot listen on 127.0.0.1:{PORT}: {error.strerror}", fix) from None
    with server:
        write_out(f"{ORIGIN}/#!/?url=http://127.0.0.1:{PORT}/{name}")
        write_err("open it in a browser of this machine; press Ctrl-C to end")
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the normal way to end it
            pass
