"""`fab import FILE`: turn a launch file of another tool into a command line."""

from __future__ import annotations

from pathlib import Path

from torchfab import importers
from torchfab.core.console import write_out
from torchfab.core.errors import UsageError
from torchfab.core.hostfiles.reading import name_of, read_text
from torchfab.importers.draft import render
from torchfab.launching.context import CommandContext


def run(file: str, ctx: CommandContext) -> int:
    """Print the command line equivalent to a launch file, as shell text with comments.

    Parameters
    ----------
    file : str
        The file, relative to the working directory; `-` for stdin.
    ctx : CommandContext
        The working directory.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    UsageError
        No file is named, the file cannot be read, or its format cannot be imported.
    """
    if not file:
        raise UsageError("no file was named", f"fab import FILE; supported files: {importers.KINDS}")
    path = Path(file) if file == "-" else Path(ctx.cwd, file)
    name = name_of(path) if file == "-" else file
    write_out(render(importers.read(read_text(path, "a launch file"), name), name))
    return 0
