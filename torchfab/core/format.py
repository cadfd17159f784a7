"""Tables, sizes and durations as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells in columns.

    Parameters
    ----------
    rows : sequence of sequence of str
        At least one row; all of the same length.

    Returns
    -------
    str
        One line per row. The last column is not padded.
    """
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def format_bytes(count: float) -> str:
    """Format a number of bytes.

    Parameters
    ----------
    count : float
        The number, at least 0.

    Returns
    -------
    str
        In a binary unit, up to TiB: `900 B`, `23.5 GiB`, `320 GiB`. Below 100, one decimal shows that the number is
        rounded: `2 GiB` is exact, `2.0 GiB` is nearly 2 GiB.
    """
    value, power = float(count), 0
    while value >= 1023.95 and power < len(_SIZE_UNITS) - 1:  # a smaller value does not round to 1024 of the unit
        value, power = value / 1024, power + 1
    decimals = 0 if power == 0 or value == int(value) or value >= 99.95 else 1
    return f"{value:.{decimals}f} {_SIZE_UNITS[power]}"


def format_gib(count: float | None) -> str:
    """Format a number of bytes in GiB, without the unit: for pairs such as `0.8/23.5 GiB`.

    Parameters
    ----------
    count : float, optional
        The number; None if it is unknown.

    Returns
    -------
    str
        With one decimal; `?` if it is unknown.
    """
    return "?" if count is None else f"{count / 1024**3:.1f}"


def duration(seconds: float) -> str:
    """Format a duration.

    Parameters
    ----------
    seconds : float
        The duration in seconds; a negative one counts as 0.

    Returns
    -------
    str
        `4 s`, `12 min 34 s`, `3 h 05 min` or `2 d 4 h`.
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_seconds(value: float) -> str:
    """Format a short duration that was measured exactly.

    Parameters
    ----------
    value : float
        The duration in seconds.

    Returns
    -------
    str
        With three significant digits: `85 us`, `1.24 ms`, `2.31 s`.
    """
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if value * factor < 999.5:
            return f"{value * factor:.3g} {unit}"
    return f"{value:.3g} s"


def format_offset(seconds: float) -> str:
    """Format the offset of a clock.

    Parameters
    ----------
    seconds : float
        The offset in seconds.

    Returns
    -------
    str
        Milliseconds with a sign: `+5000 ms`, `-0.3 ms`; `0 ms` below 0.05 ms.
    """
    count = seconds * 1000
    if abs(count) < 0.05:
        return "0 ms"
    return f"{count:+.1f} ms" if abs(count) < 10 else f"{count:+.0f} ms"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: `1 node`, `2 nodes`.

    Parameters
    ----------
    number : int
        How many.
    noun : str
        The noun for one; its plural is formed with `s` or, for `process`, `es`.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
