"""Prometheus' text format, version 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torchfab.metrics.families import ENDINGS, Family

PREFIX = "torchfab_"


def render(found: Iterable[Family]) -> str:
    """Return metrics in the text format.

    Parameters
    ----------
    found : iterable of Family
        The metrics.

    Returns
    -------
    str
        UTF-8 can hold it; empty without metrics.
    """
    return "".join(_family(each) for each in found)


def _family(family: Family) -> str:
    name = name_of(family)
    lines = [f"# HELP {name} {_escape(family.help)}", f"# TYPE {name} gauge"]
    for labels, value in family.samples:
        pairs = ",".join(f'{key}="{escape_label(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{pairs}}} {format_value(value)}" if pairs else f"{name} {format_value(value)}")
    return "\n".join(lines) + "\n"


def name_of(family: Family) -> str:
    """Return the name of a metric, with its unit.

    Parameters
    ----------
    family : Family
        The metric.

    Returns
    -------
    str
        `torchfab_gpu_power_watts`.
    """
    return f"{PREFIX}{family.name}{ENDINGS[family.unit]}"


def escape_label(text: str) -> str:
    """Escape the value of a label: backslash, quote and line feed; what UTF-8 cannot hold becomes a question mark.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
    """
    return _escape(text).replace('"', '\\"')


def _escape(text: str) -> str:
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return valid.replace("\\", "\\\\").replace("\n", "\\n")


def format_value(value: float) -> str:
    """Format a value so that it is read as the same number.

    Parameters
    ----------
    value : float
        Any number; infinite and NaN too.

    Returns
    -------
    str
        Without a decimal point if it is whole: `71680`.
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
