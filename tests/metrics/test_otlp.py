"""Metrics sent to a collector: a real HTTP server that decodes OpenTelemetry's protobuf messages."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from torchfab.core.errors import TorchfabError, UsageError
from torchfab.metrics import otlp
from torchfab.metrics.families import Family

POWER = Family("gpu_power", "Power draw.", "W", (({"host": "node1", "gpu": "0"}, 95.5), ({"host": "é\n"}, 700.0)))
STEP = Family("job_step", "The last step.", "", (({"job": "gpt2"}, 7.0),))


class Collector(HTTPServer):
    """A collector on loopback, which answers with one status."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = status
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.received: list[ExportMetricsServiceRequest] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Decode each request."""

    server: Collector

    def do_POST(self) -> None:
        """Keep the decoded message."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message = ExportMetricsServiceRequest()
        message.ParseFromString(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        self.server.received.append(message)
        self.server.paths.append(self.path)
        self.server.keys.append(self.headers["x-key"])
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def collector(status: int = 200) -> Iterator[Collector]:
    with Collector(status) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_collector_receives_all_samples_with_unit_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
    with collector() as server:
        otlp.send([POWER, STEP], otlp.endpoint(server.url))
    assert (server.paths, server.keys) == (["/v1/metrics"], ["secret"])
    (resource,) = server.received[0].resource_metrics
    assert {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"] == "torchfab"
    power, step = resource.scope_metrics[0].metrics
    assert (power.name, power.unit, power.description) == ("torchfab.gpu_power", "W", "Power draw.")
    points = [
        ({each.key: each.value.string_value for each in point.attributes}, point.as_double)
        for point in power.gauge.data_points
    ]
    assert points == [({"host": "node1", "gpu": "0"}, 95.5), ({"host": "é\n"}, 700.0)]
    assert (step.name, step.gauge.data_points[0].as_double) == ("torchfab.job_step", 7.0)


def test_a_collector_that_refuses_is_an_error_with_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    with collector(401) as server, pytest.raises(TorchfabError, match=r"/v1/metrics did not accept the metrics: .*401"):
        otlp.send([STEP], otlp.endpoint(server.url))
    assert logging.getLogger("opentelemetry").propagate
    assert not caplog.records


def test_the_reason_of_a_connection_error_is_short() -> None:
    text = """Transient error HTTPConnectionPool(host='h', port=9): Max retries exceeded with url: /v1 (Caused by
        NewConnectionError("HTTPConnection(host='h', port=9): Failed to establish a new connection: [Errno 111]
        Connection refused")) encountered while exporting"""
    assert otlp._short(" ".join(text.split())) == "[Errno 111] Connection refused"
    assert otlp._short("Failed to export metrics batch code: 401") == "Failed to export metrics batch code: 401"


@pytest.mark.parametrize("url", ["collector:4318", "http://", "ftp://x", "http://x:port", "http://x:99999", ""])
def test_what_is_not_a_url_is_an_error(url: str) -> None:
    with pytest.raises(UsageError, match="--otlp is the URL of a collector"):
        otlp.endpoint(url)


def test_a_path_is_kept() -> None:
    assert otlp.endpoint("https://x/otlp/v1/metrics") == "https://x/otlp/v1/metrics"
    assert otlp.endpoint("https://x:4318/") == "https://x:4318/v1/metrics"


def test_without_the_sdk_the_error_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with pytest.raises(TorchfabError, match=r"opentelemetry-exporter-otlp-proto-http \(torchfab\[otlp\]\)"):
        otlp.send([STEP], "http://127.0.0.1:1/v1/metrics")
