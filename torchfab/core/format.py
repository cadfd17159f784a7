"""Format tables and durations for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


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
