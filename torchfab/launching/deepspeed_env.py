"""Report a `.deepspeed_env` beside the script: DeepSpeed's launcher reads it, torchfab does not."""

from __future__ import annotations

import shlex
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from torchfab.core import environment

NAME = ".deepspeed_env"
MAX_BYTES = 100_000
SHOWN = 8


def find(script: Sequence[str], cwd: str) -> Path | None:
    """Return the `.deepspeed_env` beside a script, or in the working directory: the places that DeepSpeed searches.

    Parameters
    ----------
    script : sequence of str
        The script and its arguments; or `-m` and a module.
    cwd : str
        The working directory on this machine.

    Returns
    -------
    Path or None
        None if there is none.
    """
    beside = [] if script[0].startswith("-") else [Path(cwd, script[0]).parent]
    for folder in [*beside, Path(cwd)]:
        if (folder / NAME).is_file():
            return folder / NAME
    return None


def parse(text: str) -> dict[str, str]:
    """Return the variables of a `.deepspeed_env`.

    Parameters
    ----------
    text : str
        Lines of NAME=VALUE; other lines are ignored.

    Returns
    -------
    dict of str to str
        The values by name.
    """
    pairs = [line.strip().removeprefix("export ").partition("=") for line in text.splitlines()]
    return {name.strip(): value.strip().strip("\"'") for name, equals, value in pairs if equals and name.strip()}


def note(variables: Mapping[str, str], forward: Sequence[str], given: Container[str]) -> str:
    """Describe the variables of a `.deepspeed_env` that a launch could set. Others are not named: some contain keys.

    Parameters
    ----------
    variables : Mapping of str to str
        The variables of the file.
    forward : sequence of str
        The patterns of names that are forwarded from this machine.
    given : container of str
        Names of variables that the launch sets already.

    Returns
    -------
    str
        Empty if the launch sets all of them already.
    """
    public, _ = environment.split_secrets(environment.select_forwarded(variables, forward))
    missing = {name: value for name, value in public.items() if name not in given}
    if public and not missing:
        return ""
    others = len(variables) - len(public)
    rest = f"; {others} other variables in it are not for the ranks" if others else ""
    if not missing:
        return f"{NAME} is not read; torchfab.forward matches none of its variables{rest}"
    flags = " ".join(f"--env {name}={shlex.quote(value)}" for name, value in list(missing.items())[:SHOWN])
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return f"{NAME} is not read; to set its variables: {flags}{more}{rest}"


def describe_unread(script: Sequence[str], cwd: str, forward: Sequence[str], given: Container[str]) -> str:
    """Return the note about a `.deepspeed_env` beside a script.

    Parameters
    ----------
    script : sequence of str
        The script and its arguments.
    cwd : str
        The working directory on this machine.
    forward : sequence of str
        The patterns of names that are forwarded from this machine.
    given : container of str
        Names of variables that the launch sets already.

    Returns
    -------
    str
        Empty without such a file, or if the launch sets all of its variables already.
    """
    path = find(script, cwd)
    if path is None:
        return ""
    try:
        with path.open(errors="replace") as file:
            return note(parse(file.read(MAX_BYTES)), forward, given)
    except OSError:
        return ""
