"""The trace on the loopback interface, for the page of Perfetto."""

from __future__ import annotations

import http.client
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchfab.core.errors import TorchfabError
from torchfab.profiling import browser


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a server of a trace, which is named `a/x`."""
    path = tmp_path / "x.json.gz"
    path.write_bytes(b"trace")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), browser.handler_of(path, "a/x")) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, method: str, path: str) -> tuple[int, bytes, str]:
    """Return status, body, and who may read it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Access-Control-Allow-Origin", "")
    finally:
        connection.close()


def test_only_the_trace_is_served_and_only_to_perfetto(port: int) -> None:
    assert ask(port, "GET", "/a/x") == (200, b"trace", browser.ORIGIN)
    assert ask(port, "OPTIONS", "/a/x") == (204, b"", browser.ORIGIN)
    for path in ("/", "/x", "/a/../a/x", "/a/x.json.gz"):
        assert ask(port, "GET", path)[0] == 404


def test_a_port_in_use_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(browser, "PORT", taken.getsockname()[1])
        with pytest.raises(TorchfabError, match="cannot listen on") as caught:
            browser.serve(tmp_path / "x.json.gz")
    assert "open https://ui.perfetto.dev and choose the file" in caught.value.fix
