"""`fab completion`: print the completion script of a shell."""

from __future__ import annotations

from collections.abc import Sequence

from torchfab.cli import completion
from torchfab.core import program_name
from torchfab.core.console import write_verbatim
from torchfab.core.errors import UsageError


def run(words: Sequence[str]) -> int:
    """Print the script.

    Parameters
    ----------
    words : sequence of str
        The name of the shell.

    Returns
    -------
    int
        Exit code: 0.

    Raises
    ------
    UsageError
        There is not exactly one word, or no completion script exists for this shell.
    """
    if len(words) != 1:
        raise UsageError("fab completion takes the name of your shell: bash, zsh or fish")
    write_verbatim(completion.script(words[0], program_name.called().name).rstrip("\n"))
    return 0
