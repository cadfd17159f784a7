"""The levels of Fabric's configuration by precedence, and the origin of each setting's value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from torchfab.config import project, settings_file
from torchfab.config.settings_file import SECTION, Lines
from torchfab.core.lazy_dataclass import dataclass

DEFAULT = "default"
_FILES = ("project", "user", "system")
_SHOWN_SECTIONS = (SECTION, "connect_kwargs")


@dataclass(frozen=True)
class Level:
    """One source of settings.

    Parameters
    ----------
    origin : str
        A file, or `default`; empty if each setting has its own origin.
    values : mapping of tuple to Any
        By section and name.
    lines : mapping of tuple to int
        In a file: the line of each setting.
    origins : mapping of tuple to str
        The origin of each setting that a flag or variable set.
    """

    origin: str
    values: Mapping[tuple[str, str], Any]
    lines: Lines = field(default_factory=dict)
    origins: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def origin_of(self, key: tuple[str, str]) -> str:
        """Return the origin of a setting of this level.

        Parameters
        ----------
        key : tuple of str
            Its section and name.

        Returns
        -------
        str
            A file with the line, a variable, a flag, or `default`.
        """
        line = self.lines.get(key) or self.lines.get(key[:1])
        return self.origins.get(key) or (f"{self.origin}:{line}" if line else self.origin)


@dataclass(frozen=True)
class Setting:
    """A setting in force.

    Parameters
    ----------
    name : str
        Its name, with the section unless that is `torchfab`.
    value : Any
        Its value.
    origin : str
        The origin of the value.
    """

    name: str
    value: Any
    origin: str


def in_force(levels: Sequence[Level]) -> list[Setting]:
    """Return all settings, each with the value of the level with the highest precedence.

    Parameters
    ----------
    levels : sequence of Level
        The level with the highest precedence first.

    Returns
    -------
    list of Setting
        In the order of the defaults.
    """
    keys = dict.fromkeys(key for level in reversed(levels) for key in level.values)
    found = []
    for key in keys:
        level = next(each for each in levels if key in each.values)
        name = key[1] if key[0] == SECTION else ".".join(key)
        found.append(Setting(name, level.values[key], level.origin_of(key)))
    return found


def levels_of(config: Any, folder: Path) -> list[Level]:
    """Return the levels of the configuration of a command.

    Parameters
    ----------
    config : fabric.Config
        The configuration.
    folder : Path
        The project's folder.

    Returns
    -------
    list of Level
        Highest precedence first: flags, the file of `-f`, variables, torchfab.yaml, fabric.yaml, the user's and the
        system's files, defaults.

    Raises
    ------
    UsageError
        torchfab.yaml is not valid.
    """
    found = [_flags(config._overrides), *_file(config, "runtime", folder), _variables(config._env)]
    path = folder / project.SETTINGS_FILE
    if path.is_file():
        own = settings_file.read(path, config.global_defaults())
        found.append(Level(path.name, _settings(own.sections), own.lines))
    for kind in _FILES:
        found += _file(config, kind, folder)
    return [*found, Level(DEFAULT, _settings(config._defaults))]


def _flags(overrides: Mapping[str, Any]) -> Level:
    connect = dict(overrides.get("connect_kwargs") or {})
    values: dict[tuple[str, str], Any] = {}
    origins: dict[tuple[str, str], str] = {}
    if "timeout" in connect:
        values[(SECTION, "connect_timeout_s")] = connect["timeout"]
        origins[(SECTION, "connect_timeout_s")] = "flag -t"
    if "key_filename" in connect:
        values[("connect_kwargs", "key_filename")] = connect["key_filename"]
        origins[("connect_kwargs", "key_filename")] = "flag -i"
    return Level("", values, origins=origins)


def _variables(env: Mapping[str, Any]) -> Level:
    values = _settings(env)
    return Level("", values, origins={key: f"FABRIC_{'_'.join(key).upper()}" for key in values})


def _file(config: Any, kind: str, folder: Path) -> list[Level]:
    """Return the level of one file of Fabric; empty if the file does not exist."""
    path = getattr(config, f"_{kind}_path")
    if not path or not Path(path).is_file() or Path(path).name == project.SETTINGS_FILE:
        return []
    data = config._load_yaml(path) if path.endswith((".yaml", ".yml", ".json")) else getattr(config, f"_{kind}")
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    name = os.path.relpath(path, folder) if Path(path).is_relative_to(folder) else str(path)
    return [Level(name, _settings(data or {}), settings_file.key_lines(text))]


def _settings(sections: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Return the settings that apply to torchfab, by section and name."""
    named = {name: sections.get(name) for name in _SHOWN_SECTIONS}
    known = {name: data for name, data in named.items() if isinstance(data, Mapping)}
    return {(name, key): value for name, data in known.items() for key, value in data.items()}
