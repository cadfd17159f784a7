"""Inventories of ansible in INI: `[gpu]`, `gpu-[01:16] ansible_host=…`, `[cluster:children]`, `[gpu:vars]`."""

from __future__ import annotations

import itertools
import re

from torchfab.core.hostfiles.ansible import TITLE, Group, Inventory
from torchfab.core.hostfiles.dialect import Source
from torchfab.core.hostfiles.structured import Text
from torchfab.core.hostlines.targets import MAX_HOSTS
from torchfab.core.hostlines.words import significant_lines, split_words, unquote

_SECTION = re.compile(r"\[\s*([A-Za-z0-9_][\w.-]*)(?:\s*:\s*(hosts|children|vars))?\s*\]")
_RANGE = re.compile(r"\[(?:(\d{1,9}):(\d{1,9})|([a-z]):([a-z])|([A-Z]):([A-Z]))(?::(\d{1,9}))?\]")
_PORT = re.compile(r"(.*[^:]|\[.*\]):(\d{1,5})")


def matches(source: Source) -> bool:
    """Return whether a line is a section header, or has a variable or a range of ansible.

    Parameters
    ----------
    source : Source
        The text of the file.

    Returns
    -------
    bool
    """
    return any(
        _section(line) or _RANGE.search(line[0]) or any(word.startswith("ansible_") for word in line[1:])
        for _, line in source.lines
    )


def _section(line: tuple[str, ...]) -> re.Match[str] | None:
    return _SECTION.fullmatch(" ".join(line))


def read(source: Source) -> Inventory:
    """Read an inventory.

    Parameters
    ----------
    source : Source
        The file.

    Returns
    -------
    dict of str to Group

    Raises
    ------
    InventoryError
        A line is not valid.
    """
    inventory: Inventory = {"all": Group(), "ungrouped": Group()}
    group, kind = inventory["ungrouped"], "hosts"
    for number, text in significant_lines(source.text):
        line = split_words(text)
        section = _section(line)
        if section:
            group = inventory.setdefault(Text.at(section[1], number), Group())
            kind = section[2] or "hosts"
        elif kind == "children":
            group.children.append(Text.at(line[0], number))
        elif kind == "vars":
            group.variables.update([_variable(source, number, text)])
        else:
            _read_host(source, number, line, group)
    return inventory


def _variable(source: Source, number: int, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise source.error(
            number, f"{text.strip()!r} in a section of variables has no =", f"{TITLE} has name=value here"
        )
    value = value.strip()
    return name.strip(), unquote(value) if value[:1] in "\"'" else value.partition(" #")[0].strip()


def _read_host(source: Source, number: int, line: tuple[str, ...], group: Group) -> None:
    pattern, variables = line[0], dict[str, str]()
    ported = _PORT.fullmatch(pattern)
    if ported and (ported[1].count(":") < 2 or ported[1].startswith("[")) and not _RANGE.search(f"[{ported[2]}]"):
        pattern, variables["ansible_port"] = ported[1], ported[2]
    for word in line[1:]:
        name, equals, value = word.partition("=")
        if not equals and "{{" in " ".join(line):
            fix = "write its value, or give what this prints: ansible-inventory --list"
            raise source.error(number, f"a variable of {line[0]} is a template: {' '.join(line[1:])}", fix)
        if not equals:
            raise source.error(
                number, f"{word!r} after the host {line[0]}", f"{TITLE} has one host a line, and name=value"
            )
        variables[name] = unquote(value)
    for host in expand(source, number, pattern):
        group.hosts.setdefault(host, {}).update(variables)


def expand(source: Source, number: int, pattern: str) -> list[str]:
    """Expand the ranges of a host name.

    Parameters
    ----------
    source : Source
        The file, for messages.
    number : int
        The line.
    pattern : str
        `gpu-[01:16]`, `node[a:d]`, `n[0:10:2]`.

    Returns
    -------
    list of Text
        The names.

    Raises
    ------
    InventoryError
        There are more than `MAX_HOSTS`.
    """
    matches_ = list(_RANGE.finditer(pattern))
    spans = [_span(match) for match in matches_]
    count = 1
    for span in spans:
        count *= len(span)
    if count > MAX_HOSTS:
        raise source.error(
            number, f"{pattern} has more than {MAX_HOSTS} hosts", "write a smaller range, or the host names"
        )
    ends = [0, *(match.end() for match in matches_)]
    starts = [*(match.start() for match in matches_), len(pattern)]
    fixed = [pattern[end:start] for end, start in zip(ends, starts, strict=True)]
    names = [list(map(str, _names(match, span))) for match, span in zip(matches_, spans, strict=True)]
    return [
        Text.at("".join(part for pair in itertools.zip_longest(fixed, chosen, fillvalue="") for part in pair), number)
        for chosen in itertools.product(*names)
    ]


def _span(match: re.Match[str]) -> range:
    low, high = match[1] or match[3] or match[5], match[2] or match[4] or match[6]
    step = max(1, int(match[7] or 1))
    return range(int(low), int(high) + 1, step) if match[1] else range(ord(low), ord(high) + 1, step)


def _names(match: re.Match[str], span: range) -> list[str]:
    if not match[1]:
        return [chr(code) for code in span]
    width = len(match[1]) if match[1].startswith("0") else 0
    return [str(number).zfill(width) for number in span]
