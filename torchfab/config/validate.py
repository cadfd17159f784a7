"""Validate the section `torchfab` of Fabric's configuration; an error names the setting.

The settings and their meanings are in fabric.yaml.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from torchfab.config import defaults
from torchfab.core.errors import UsageError

_SECONDS = (
    *("connect_timeout_s", "prepare_timeout_s", "start_timeout_s", "answer_timeout_s", "reach_timeout_s"),
    *("network_timeout_s", "notify_timeout_s", "sync_timeout_s", "setup_timeout_s", "hook_timeout_s"),
)
_GRACES = ("grace_s", "failure_grace_s", "stall_s", "backoff_s", "lost_s", "gpu_memory_timeout_s")
_COUNTS = {"fanout": 1, "restarts": 0}
_TEXTS = ("hostfile", "gpufile", "node_dir", "records", "agent_python", "tmux_conf", "setup")
_MAY_BE_EMPTY = ("tmux_conf", "setup")
_STACK_SIGNALS = ("", "SIGUSR1", "SIGUSR2")
_MAX = 1e9  # seconds, hosts or restarts: a larger number is a mistake
_LISTS = ("script", "forward")
_SWITCHES = ("probe",)


def check(config: Mapping[str, Any]) -> None:
    """Check all settings.

    Parameters
    ----------
    config : mapping of str to Any
        The section `torchfab`.

    Raises
    ------
    UsageError
        The value of a setting is not valid; the first such setting is reported.
    """
    for name, value in config.items():
        where = f"correct it where fab config --show-origin finds it, or in FABRIC_TORCHFAB_{str(name).upper()}"
        check_setting(str(name), value, f"torchfab.{name}", where, "torchfab.")


def check_setting(name: str, value: Any, spelled: str, fix: str, prefix: str = "") -> None:
    """Check one setting.

    Parameters
    ----------
    name : str
        Its name.
    value : Any
        Its value.
    spelled : str
        Its name in an error, with file and line, or with its section.
    fix : str
        The fix in the error for an invalid value.
    prefix : str
        Prefix of the name that an error suggests. Default: none.

    Raises
    ------
    UsageError
        There is no such setting, or its value is not valid.
    """
    if name not in defaults.SETTINGS:
        raise unknown(spelled, name, defaults.SETTINGS, prefix)
    expected = _expected(name, value)
    if expected:
        raise UsageError(f"{spelled} must be {expected}, got {value!r}", fix)


def check_sections(data: Any, sections: Iterable[str], where: str) -> None:
    """Check the structure of a settings file; unknown sections, for the user's own tasks, are allowed.

    Parameters
    ----------
    data : Any
        The content of the file.
    sections : iterable of str
        The names of the known sections.
    where : str
        The file.

    Raises
    ------
    UsageError
        The content is not a mapping, a name is not a text, or the name of a section seems misspelt.
    """
    known = sorted(sections)
    if data is None:  # an empty file
        return
    if not isinstance(data, Mapping):
        raise UsageError(
            f"{where} holds no settings, got {data!r:.60}", "write sections: torchfab:, and below it names"
        )
    for name, value in data.items():
        if not isinstance(name, str):
            raise UsageError(f"{where}: the name of a section is a text, got {name!r}", "put it in quotes")
        if name in defaults.SETTINGS and name not in known and not isinstance(value, Mapping):
            raise UsageError(f"{where}: {name} is a setting of torchfab", "write it below torchfab:, indented")
        near = difflib.get_close_matches(name, known, 1, 0.75)
        if name not in known and near:
            raise UsageError(f"{where}: there is no section {name}; did you mean {near[0]}?")
        if name == "torchfab" and value is not None and not isinstance(value, Mapping):
            raise UsageError(f"{where}: torchfab is a section, got {value!r}", "write its settings below it, indented")
        if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
            raise UsageError(f"{where}: the names of settings in {name} are texts", "put numbers in quotes")


def check_variables(environ: Iterable[str]) -> None:
    """Check that every environment variable FABRIC_TORCHFAB_* names a setting; Fabric ignores unknown ones.

    Parameters
    ----------
    environ : iterable of str
        The names of the environment variables.

    Raises
    ------
    UsageError
        A variable names no setting.
    """
    prefix = "FABRIC_TORCHFAB_"
    known = [prefix + name.upper() for name in defaults.SETTINGS]
    for name in sorted(environ):
        if name.startswith(prefix) and name not in known:
            raise unknown(f"the environment variable {name}", name, known)


def unknown(what: str, name: str, known: Iterable[str], prefix: str = "") -> UsageError:
    """Return the error for an unknown setting, with the nearest name.

    Parameters
    ----------
    what : str
        Description of the name in the error.
    name : str
        The name.
    known : iterable of str
        The names of the settings.
    prefix : str
        Prefix of the name that the error suggests. Default: none.

    Returns
    -------
    UsageError
    """
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return UsageError(
        f"{what} names no setting" + (f"; did you mean {prefix}{near[0]}?" if near else ""),
        "" if near else "fab config lists the settings",
    )


def _expected(name: str, value: Any) -> str:
    """Return the expected form of a setting's value; empty if the value is valid."""
    if name in _COUNTS:
        minimum = _COUNTS[name]
        return "" if _is_number(value, minimum) and value == int(value) else f"a number of at least {minimum}"
    if name in _SECONDS:
        return "" if _is_number(value, 0.001) else "a number of seconds above 0"
    if name in _GRACES:
        return "" if _is_number(value, 0) else "a number of seconds"
    if name in _TEXTS:
        return "" if isinstance(value, str) and (value.strip() or name in _MAY_BE_EMPTY) else "a text"
    return _expected_choice(name, value)


def _expected_choice(name: str, value: Any) -> str:
    if name in _LISTS:
        return "" if _is_list(value) else "a list of texts"
    if name in _SWITCHES:
        return "" if isinstance(value, bool) else "true or false"
    wrong_signal = name == "stacks_signal" and value not in _STACK_SIGNALS
    return "SIGUSR1, SIGUSR2, or empty for none" if wrong_signal else ""


def _is_number(value: Any, minimum: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value < _MAX


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
