"""Convert keyword arguments of `launch` to the flags of a launcher, with the types and checks of the flags."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

from torchfab import launchers
from torchfab.cli.flags import JobFlags
from torchfab.core import flag_values
from torchfab.core.errors import UsageError
from torchfab.launchers import AnyLauncher
from torchfab.launching import launcher_table

# Flags of a terminal: a program follows the job with `logs` and `wait`; its supervisor is always in tmux.
_NOT_HERE = ("dry_run", "follow", "tmux", "env")


def launcher_named(name: str) -> tuple[AnyLauncher, type[JobFlags]]:
    """Return a launcher and the class of the flags that it shares with others.

    Parameters
    ----------
    name : str
        Its name: `per-node`.

    Returns
    -------
    module, type

    Raises
    ------
    UsageError
        There is no such launcher.
    """
    if name not in launcher_table.ALL:
        raise UsageError(f"there is no launcher {name!r}", f"one of {', '.join(launcher_table.ALL)}")
    return launchers.load_any(name), launcher_table.ALL[name]


def parse_flags(launcher: AnyLauncher, shared: type[JobFlags], values: Mapping[str, Any]) -> tuple[JobFlags, Any]:
    """Convert keyword arguments to the flags of a launch.

    Parameters
    ----------
    launcher : module
        The launcher.
    shared : type
        The class of the flags that it shares with others.
    values : Mapping of str to Any
        Values by the names of flags, `-` as `_`; None for the default.

    Returns
    -------
    JobFlags, dataclass
        The shared flags, and the launcher's own.

    Raises
    ------
    UsageError
        There is no such flag, or a value does not have its type.
    """
    known = {each.name: each for each in (*fields(shared), *fields(launcher.Flags)) if each.name not in _NOT_HERE}
    for name in values:
        if name not in known:
            raise _unknown(name, launcher, known)
    given = {name: _checked(known[name], value) for name, value in values.items() if value is not None}
    return flag_values.parse(shared, given), flag_values.parse(launcher.Flags, given)


def _unknown(name: str, launcher: AnyLauncher, known: Iterable[str]) -> UsageError:
    if name in _NOT_HERE:
        return UsageError(f"launch() takes no {name}: it is a flag of the command line only", _instead(name))
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    fix = f"did you mean {near[0]}?" if near else f"fab --help launch-{launcher.NAME} lists the flags"
    return UsageError(f"launch() with launcher {launcher.NAME!r} has no argument {name!r}", fix)


def _instead(name: str) -> str:
    if name == "follow":
        return "iterate over logs(follow=True), or call wait()"
    if name == "tmux":
        return "leave it out: the supervisor of a program's job is always in tmux"
    return "dry_run(…) takes the same arguments, and returns the text" if name == "dry_run" else "env={'NAME': 'VALUE'}"


def _checked(flag: Field[Any], value: Any) -> Any:
    """Return a value as the command line gives it: a switch as a bool, all others as text."""
    name = f"--{flag.name.replace('_', '-')}"
    if isinstance(flag.default, bool) or isinstance(value, bool):
        if not (isinstance(flag.default, bool) and isinstance(value, bool)):
            expected = "True or False" if isinstance(flag.default, bool) else "a value, not a switch"
            raise UsageError(f"{name} is {expected}, got {value!r}")
        return value
    if flag.default == ():
        return tuple(_text(name, each) for each in as_sequence(value))
    return _text(name, value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | int | float | os.PathLike):
        raise UsageError(f"{name} is a text or a number, got {value!r}")
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if not text:
        raise UsageError(f"{name} is empty", "give it a value, or omit it")
    return text


def as_sequence(value: str | os.PathLike[str] | Sequence[Any]) -> Sequence[Any]:
    """Return one value, or a sequence of some, as a sequence.

    Parameters
    ----------
    value : str, path or sequence
        One value, or several.

    Returns
    -------
    sequence
    """
    return (value,) if isinstance(value, str | os.PathLike) else tuple(value)


def env_flags(env: Mapping[str, Any]) -> tuple[str, ...]:
    """Return variables as values of `--env`.

    Parameters
    ----------
    env : Mapping of str to str or number
        Values by name.

    Returns
    -------
    tuple of str
        Each NAME=VALUE.

    Raises
    ------
    UsageError
        A value is neither a text nor a number.
    """
    for name, value in env.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float | os.PathLike):
            raise UsageError(f"env: the value of {name} is a text, got {value!r}", f"{name}={str(value)!r}")
    return tuple(f"{name}={value}" for name, value in env.items())


def hosts_flag(hosts: str | Sequence[str] | None) -> str:
    """Return hosts as the value of `-H`.

    Parameters
    ----------
    hosts : str or sequence of str, optional
        Hosts; None for the hosts of the hosts file.

    Returns
    -------
    str
        Empty for the hosts of the hosts file.

    Raises
    ------
    UsageError
        A host is empty, or there are none.
    """
    if hosts is None:
        return ""
    names = as_sequence(hosts)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UsageError(f"hosts names hosts, got {hosts!r}", 'name them: hosts=["a", "b"]; or leave it out')
    return ",".join(names)
