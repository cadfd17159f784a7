"""Read hosts files in any format: torchfab's own, and those of other launchers, schedulers and inventories.

    found = hostfiles.read_hosts(Path("hosts"))
    found.inventory.nodes, found.dialect

Each dialect is one module that detects its format, and translates it into lines of our own grammar
(`core/hostlines`). A text that fits two dialects is an error, whose fix names the flag that decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torchfab.core import inventory
from torchfab.core.errors import InventoryError, UsageError
from torchfab.core.flag_values import is_whole
from torchfab.core.hostfiles import (
    ansible,
    ansible_ini,
    clustershell,
    documents,
    etc_hosts,
    lists,
    mpich,
    nodefile,
    openmpi,
    reading,
    refusals,
)
from torchfab.core.hostfiles.dialect import Dialect, Source, Translation
from torchfab.core.hostlines.words import Line, lines_of
from torchfab.core.inventory import Inventory
from torchfab.core.lazy_dataclass import dataclass


@dataclass(frozen=True)
class HostFile:
    """The content of a hosts file.

    Parameters
    ----------
    inventory : Inventory
        Nodes, slots and notes.
    dialect : str
        Description of the format, with an article; empty for our own grammar.
    groups : tuple of str
        Names of its groups, if any.
    """

    inventory: Inventory
    dialect: str = ""
    groups: tuple[str, ...] = ()


def _never(source: Source) -> bool:
    return False


def _read_ansible(source: Source) -> Translation:
    if documents.is_document(source) and not ansible_ini.matches(source):
        return documents.read_ansible(source)
    return ansible.translate(source, ansible_ini.read(source))


def _read_clustershell(source: Source) -> Translation:
    if clustershell.matches(source) or not documents.is_document(source):
        return clustershell.translate(source)
    return documents.recognise(source).translate()


_ANSIBLE = Dialect(("ansible",), ansible.TITLE, ansible_ini.matches, _read_ansible)
_CLUSTERSHELL = Dialect(("clustershell",), clustershell.TITLE, clustershell.matches, _read_clustershell)
_MLX = Dialect(("mlx",), lists.MLX, _never, documents.read_mlx)
# Tried in this order, after the dialects whose files can look like YAML.
_LINE_DIALECTS = (_ANSIBLE, nodefile.SGE, nodefile.LSF, openmpi.DIALECT, mpich.DIALECT, etc_hosts.REFUSED)
_ALL = (*_LINE_DIALECTS, _CLUSTERSHELL, nodefile.PBS, etc_hosts.DIALECT, _MLX)
STDIN = reading.STDIN
OURS = ("torchfab", "deepspeed")
FORMATS = (*OURS, *(name for dialect in _ALL for name in dialect.formats))


def check_format(name: str) -> str:
    """Check the value of `--hostfile-format`.

    Parameters
    ----------
    name : str
        The value; empty to detect the format.

    Returns
    -------
    str
        The same.

    Raises
    ------
    UsageError
        There is no such format.
    """
    if name and name not in FORMATS:
        raise UsageError(f"--hostfile-format must be one of {', '.join(FORMATS)}; got {name!r}")
    return name


def name_of(path: Path) -> str:
    """Return the name of a file for messages; `-` is stdin.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str
        The path; `stdin` for `-`.
    """
    return reading.name_of(path)


def read_hosts(path: Path, file_format: str = "", groups: tuple[str, ...] = ()) -> HostFile:
    """Read a hosts file.

    Parameters
    ----------
    path : Path
        The file; `-` for stdin.
    file_format : str
        One of `FORMATS`. Default: detected from the text.
    groups : tuple of str
        The groups to select, in a file that has groups. Default: all hosts.

    Returns
    -------
    HostFile

    Raises
    ------
    InventoryError
        The file cannot be read, a line is invalid, or its format is ambiguous.
    """
    found = parse_hosts(Source(reading.read_text(path), reading.name_of(path), groups), file_format)
    if found.dialect != ansible.TITLE:
        return found
    # Merging their variables would require ansible's own rules.
    beside = [name for name in ("group_vars", "host_vars") if (path.parent / name).is_dir()]
    notes = [f"{path.parent / name} is not read: ansible-inventory --list prints the values" for name in beside]
    return replace(found, inventory=replace(found.inventory, notes=(*found.inventory.notes, *notes)))


def parse_hosts(source: Source, file_format: str = "") -> HostFile:
    """Parse the text of a hosts file, or the value of `-H`.

    Parameters
    ----------
    source : Source
        The text, its origin and the selected groups.
    file_format : str, default ""
        One of `FORMATS`; empty to detect the format.

    Returns
    -------
    HostFile

    Raises
    ------
    InventoryError
        A line is invalid, or the format is ambiguous.
    """
    title, translation = _translate(source, file_format)
    if translation is None:
        if not file_format:
            _ask(source, mpich.ambiguity, nodefile.repetition)
        _refuse_groups(source)
        return HostFile(inventory.hosts_from_lines(lines_of(source.text, source.origin), source.origin))
    found = inventory.hosts_from_lines(translation.lines, source.origin)
    return _host_file(found, title, translation)


def read_gpus(path: Path, file_format: str = "") -> HostFile:
    """Read a gpus file: one process per line; in another dialect, one process per slot.

    Parameters
    ----------
    path : Path
        The file; `-` for stdin.
    file_format : str, default ""
        One of `FORMATS`; empty to detect the format.

    Returns
    -------
    HostFile

    Raises
    ------
    InventoryError
        The file cannot be read, a line is invalid, or the format is ambiguous.
    """
    return parse_gpus(Source(reading.read_text(path), reading.name_of(path)), file_format)


def parse_gpus(source: Source, file_format: str = "") -> HostFile:
    """Parse the text of a gpus file, or the value of `-H`.

    Parameters
    ----------
    source : Source
        The text and its origin.
    file_format : str, default ""
        One of `FORMATS`; empty to detect the format.

    Returns
    -------
    HostFile

    Raises
    ------
    InventoryError
        A line is invalid, or the format is ambiguous.
    """
    title, translation = _translate(source, file_format)
    if translation is None:
        if not file_format:
            _ask(source, mpich.ambiguity)
        return HostFile(inventory.gpus_from_lines(lines_of(source.text, source.origin), source.origin))
    lines = [each for line in translation.lines for each in _per_process(line)]
    return _host_file(inventory.gpus_from_lines(lines, source.origin), title, translation)


def _per_process(line: Line) -> list[Line]:
    """Return a line once for each of its slots; lines of a gpus file have no slots."""
    host, *keys = line.words
    slots = [word.partition("=")[2] for word in keys if word.startswith("slots=")]
    rest = Line(line.origin, (host, *(word for word in keys if not word.startswith("slots="))))
    count = int(slots[0]) if slots and is_whole(slots[0], 4) else 1
    return [rest] * (1 if any(word.startswith("gpus=") for word in keys) else count)


def _host_file(found: Inventory, title: str, translation: Translation) -> HostFile:
    notes = (*translation.notes, *found.notes)
    return HostFile(Inventory(found.nodes, found.slots, notes), title, tuple(translation.groups))


def _translate(source: Source, file_format: str) -> tuple[str, Translation | None]:
    """Return the description of a text's dialect, and its translation; None if it is in our own grammar."""
    if file_format in OURS:
        return "", None
    if file_format:
        dialect = next(each for each in _ALL if file_format in each.formats)
        return dialect.title, dialect.translate(source)
    refusals.refuse(source)
    documents.refuse(source)
    if not clustershell.matches(source) and documents.is_document(source):
        document = documents.recognise(source)
        return document.title, document.translate()
    for dialect in (_CLUSTERSHELL, *_LINE_DIALECTS):
        if dialect.matches(source):
            return dialect.title, dialect.translate(source)
    return "", None


def _ask(source: Source, *questions: Callable[[Source], InventoryError | None]) -> None:
    """Raise the error for the first ambiguity of a text."""
    for question in questions:
        error = question(source)
        if error is not None:
            raise error


def _refuse_groups(source: Source) -> None:
    if source.groups:
        raise source.error(0, f"has no groups, such as {source.groups[0]!r}", "give hosts with -H, or define the group")
