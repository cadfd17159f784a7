"""Read torchfab.yaml: settings without a section, and Fabric's own sections beside them. Errors name file and line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from torchfab.config import defaults, validate
from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass

Lines = Mapping[tuple[str, ...], int]
SECTION = "torchfab"


@dataclass(frozen=True)
class SettingsFile:
    """The content of a torchfab.yaml.

    Parameters
    ----------
    sections : mapping of str to Any
        Its settings in the form of Fabric: the section `torchfab`, and sections of Fabric itself.
    lines : mapping of tuple of str to int
        The line of each section and setting, from 1.
    """

    sections: Mapping[str, Any] = field(default_factory=dict)
    lines: Lines = field(default_factory=dict)


def read(path: Path, fabric_sections: Iterable[str]) -> SettingsFile:
    """Read a torchfab.yaml.

    Parameters
    ----------
    path : Path
        The file.
    fabric_sections : iterable of str
        The names of Fabric's own sections, which it may hold too.

    Returns
    -------
    SettingsFile

    Raises
    ------
    UsageError
        The file cannot be read, is not a mapping, names an unknown setting, or a value is not valid.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path} cannot be read: {reason}", "correct its YAML syntax") from None
    return parse(text, str(path), fabric_sections)


def parse(text: str, where: str, fabric_sections: Iterable[str]) -> SettingsFile:
    """Read the text of a torchfab.yaml.

    Parameters
    ----------
    text : str
        The text.
    where : str
        The file, for errors.
    fabric_sections : iterable of str
        The names of Fabric's own sections, which it may hold too.

    Returns
    -------
    SettingsFile

    Raises
    ------
    UsageError
        The text is not a mapping, names an unknown setting, or a value is not valid.
    """
    data, lines = _load(text, where)
    known = {*defaults.SETTINGS, *fabric_sections, SECTION}
    settings: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    at: dict[tuple[str, ...], int] = {}
    for name, value in data.items():
        line = lines[(name,)]
        if name == SECTION:
            _check_mapping(value, f"{where}:{line}", name)
            inner = {key: (each, lines[(name, key)]) for key, each in (value or {}).items()}
        elif name in defaults.SETTINGS:
            inner = {name: (value, line)}
        elif name in known:
            sections[name], at[(name,)] = value, line
            continue
        else:
            raise validate.unknown(f"{where}:{line}: {name}", name, known)
        for key, (each, number) in inner.items():
            if key in settings:
                raise UsageError(f"{where}:{number}: {key} is given twice, first in line {at[(SECTION, key)]}")
            validate.check_setting(key, each, f"{where}:{number}: {key}", f"correct it in line {number}")
            settings[key], at[(SECTION, key)] = each, number
    return SettingsFile({**sections, **({SECTION: settings} if settings else {})}, at)


def key_lines(text: str) -> Lines:
    """Return the lines of the names in a YAML or JSON file of settings, down to the settings of a section.

    Parameters
    ----------
    text : str
        The text.

    Returns
    -------
    mapping of tuple of str to int
        By section, and by section and setting; empty if the text is not a YAML mapping.
    """
    try:
        return _load(text, "")[1]
    except UsageError:
        return {}


def _load(text: str, where: str) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """Return the values and the lines of a YAML mapping."""
    import yaml  # 20 ms

    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        data = loader.construct_document(root) if root else {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(
            f"{where}{line} is not YAML: {' '.join(str(reason).split())}", "write lines NAME: VALUE"
        ) from None
    if root is None or data is None:
        return {}, {}
    _check_mapping(data, where, "")
    lines: dict[tuple[str, ...], int] = {}
    _collect_lines(root, (), lines, where)
    return data, lines


def _collect_lines(node: Any, prefix: tuple[str, ...], lines: dict[tuple[str, ...], int], where: str) -> None:
    import yaml

    for key, value in node.value:
        name, line = (*prefix, str(key.value)), key.start_mark.line + 1
        if name in lines:
            raise UsageError(f"{where}:{line}: {name[-1]} is given twice, first in line {lines[name]}")
        lines[name] = line
        if not prefix and isinstance(value, yaml.MappingNode):
            _collect_lines(value, name, lines, where)


def _check_mapping(value: Any, where: str, name: str) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        subject = f"{name} is a section" if name else "it holds no settings"
        raise UsageError(f"{where}: {subject}, got {value!r:.60}", "write lines NAME: VALUE")
    for key in value:
        if not isinstance(key, str):
            raise UsageError(f"{where}: the name of a setting is a text, got {key!r}", "put it in quotes")
