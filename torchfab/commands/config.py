"""`torchfab config`: print every setting, its value, and the origin of the value."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torchfab import documents
from torchfab.cli.executor import TaskContext
from torchfab.cli.setting_levels import Setting, in_force, levels_of
from torchfab.config import validate
from torchfab.core.console import write_err, write_verbatim
from torchfab.core.format import align_columns

_PASSWORDS = ("password", "passphrase")


def run(c: TaskContext, show_origin: bool, as_json: bool) -> int:
    """Print the settings in force.

    Parameters
    ----------
    c : TaskContext
        The context of the command.
    show_origin : bool
        Also print the origin of each value.
    as_json : bool
        Print JSON.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    UsageError
        A setting is invalid. Raised after all settings are printed, so that the user sees its origin.
    """
    folder = c.command_line.project
    settings = [_without_password(each) for each in in_force(levels_of(c.config, folder))]
    if as_json:
        by_name = {each.name: {"value": each.value, "origin": each.origin} for each in settings}
        write_verbatim(documents.encode({"project": str(folder), "settings": by_name}, default=str))
    else:
        write_err(f"project {folder}")
        write_verbatim(render(settings, show_origin))
    validate.check(c.config.torchfab)
    validate.check_variables(os.environ)
    return 0


def render(settings: Sequence[Setting], show_origin: bool) -> str:
    """Return the settings as lines.

    Parameters
    ----------
    settings : sequence of Setting
        The settings.
    show_origin : bool
        Insert the origin between the name and the value.

    Returns
    -------
    str
    """
    if not show_origin:
        return align_columns([[each.name, _text(each.value)] for each in settings])
    return align_columns([[each.name, each.origin, _text(each.value)] for each in settings])


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "(none)"
    return str(value) if not isinstance(value, str) or value.strip() else repr(value)


def _without_password(setting: Setting) -> Setting:
    is_secret = setting.name.rpartition(".")[2] in _PASSWORDS
    return Setting(setting.name, "(hidden)", setting.origin) if is_secret else setting
