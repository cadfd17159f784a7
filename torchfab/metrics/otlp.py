"""Send metrics to an OpenTelemetry collector: OTLP over HTTP, with OpenTelemetry's own SDK (extra `otlp`)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import torchfab
from torchfab.core import extras
from torchfab.core.errors import TorchfabError, UsageError
from torchfab.metrics.families import Family

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

_PATH = "/v1/metrics"
_TIMEOUT_S = 10


def endpoint(url: str) -> str:
    """Return the URL to which metrics are sent.

    Parameters
    ----------
    url : str
        The collector: `http://collector:4318`. Without a path, `/v1/metrics` is appended, as OTLP defines it.

    Returns
    -------
    str
        The URL with a path.

    Raises
    ------
    UsageError
        It is not an HTTP URL.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a bad port
        valid = False
    if not valid:
        raise UsageError(f"--otlp is the URL of a collector, got {url!r}", "for example: --otlp http://collector:4318")
    return url if parts.path.strip("/") else f"{url.rstrip('/')}{_PATH}"


def send(found: Iterable[Family], url: str) -> None:
    """Send metrics, once. Credentials come from OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_HEADERS.

    Parameters
    ----------
    found : iterable of Family
        The metrics. Their names have dots for the first part: `torchfab.gpu_power`, unit `W`.
    url : str
        As `endpoint` returns it.

    Raises
    ------
    TorchfabError
        The SDK is not installed, or the collector did not accept the metrics within 10 seconds.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
        from opentelemetry.sdk.resources import Resource
    except ImportError:
        package = "opentelemetry-exporter-otlp-proto-http"
        raise extras.missing(package, "otlp", "fab metrics --otlp") from None
    reader = InMemoryMetricReader()
    resource = Resource.create({"service.name": "torchfab", "service.version": torchfab.__version__})
    provider = MeterProvider(metric_readers=[reader], resource=resource)
    meter = provider.get_meter("torchfab", torchfab.__version__)
    for each in found:
        meter.create_observable_gauge(f"torchfab.{each.name}", [_observe(each)], each.unit, each.help)
    data = reader.get_metrics_data()
    exporter = OTLPMetricExporter(endpoint=url, timeout=_TIMEOUT_S)
    reasons = _Reasons()
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(reasons)
    logger.propagate = False  # the reason is in the error
    try:
        accepted = data is None or exporter.export(data) is MetricExportResult.SUCCESS
    finally:
        logger.propagate = True
        logger.removeHandler(reasons)
        exporter.shutdown()
        provider.shutdown()
    if not accepted:
        reason = f": {_short(reasons.texts[0])}" if reasons.texts else ""
        raise TorchfabError(f"{url} did not accept the metrics{reason}", "check the URL, and that the collector runs")


def _short(reason: str) -> str:
    """Return what the exporter logged; of an error of the connection, only its cause: `Connection refused`."""
    found = re.search(r"Caused by \w+\(.*?(\[Errno [^\"']+|[^:\"']+)[\"']\)", reason)
    return found[1].strip() if found else reason


def _observe(family: Family) -> Callable[[CallbackOptions], Sequence[Observation]]:
    from opentelemetry.metrics import Observation

    def observe(_: CallbackOptions) -> Sequence[Observation]:
        return [Observation(value, dict(labels)) for labels, value in family.samples]

    return observe


class _Reasons(logging.Handler):
    """Keep what the exporter logs, which is the only place where it tells why it failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(" ".join(record.getMessage().split())[:300])
