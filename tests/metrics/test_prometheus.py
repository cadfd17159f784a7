"""Prometheus' text format, read by Prometheus' own Python client."""

from __future__ import annotations

import math

from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.support import fuzzed
from torchfab.metrics import prometheus
from torchfab.metrics.families import Family


def parsed(text: str) -> list[tuple[str, dict[str, str], float]]:
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


def test_a_family_has_help_type_and_a_line_for_each_sample() -> None:
    power = Family(
        "gpu_power", "Power draw.", "W", (({"host": "a", "gpu": "0"}, 95.1), ({"host": "b", "gpu": "1"}, 700.0))
    )
    assert prometheus.render([power, Family("up", "Whether\nit answered.", "", (({}, 1.0),))]) == (
        "# HELP torchfab_gpu_power_watts Power draw.\n"
        "# TYPE torchfab_gpu_power_watts gauge\n"
        'torchfab_gpu_power_watts{host="a",gpu="0"} 95.1\n'
        'torchfab_gpu_power_watts{host="b",gpu="1"} 700\n'
        "# HELP torchfab_up Whether\\nit answered.\n"
        "# TYPE torchfab_up gauge\n"
        "torchfab_up 1\n"
    )


@fuzzed(st.lists(st.tuples(st.text(), st.floats()), min_size=1, max_size=4, unique_by=lambda each: each[0]), st.text())
def test_any_label_help_and_value_is_read_as_it_was(samples: list[tuple[str, float]], about: str) -> None:
    family = Family("x", about, "", tuple(({"host": host, "b": "1"}, value) for host, value in samples))
    found = parsed(prometheus.render([family]))
    assert [name for name, _, _ in found] == ["torchfab_x"] * len(samples)
    assert [labels for _, labels, _ in found] == [{"host": host, "b": "1"} for host, _ in samples]
    for (_, _, value), (_, expected) in zip(found, samples, strict=True):
        assert value == expected or (math.isnan(value) and math.isnan(expected))


def test_a_label_that_is_not_unicode_can_be_written() -> None:
    text = prometheus.render([Family("x", "", "", (({"host": "a\udc80"}, 1.0),))])
    assert parsed(text) == [("torchfab_x", {"host": "a?"}, 1.0)]
    assert text.encode("utf-8")
