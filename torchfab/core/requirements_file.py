"""A package list (`requirements.txt`, `uv.lock`): its text with all included files, and its digest."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from torchfab.core.errors import UsageError
from torchfab.core.lazy_dataclass import dataclass

LOCK = "uv.lock"
NAMES = (LOCK, "requirements.txt")
_INCLUDE = re.compile(r"(-r|--requirement|-c|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(?P<name>\S+)\s*(?:#.*)?")
_REQUIRES = re.compile(r'^requires-python = "([^"\n]*)"', re.MULTILINE)
_MOST_FILES = 50


@dataclass(frozen=True)
class PackageList:
    """The packages of an environment.

    Parameters
    ----------
    source : str
        Name of the file, or its path in the project.
    text : str
        Its text, with included files inserted.
    """

    source: str
    text: str

    @property
    def digest(self) -> str:
        """The digest by which environments are compared: 64 hexadecimal digits."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogateescape")).hexdigest()


def find(folder: Path) -> Path | None:
    """Return the package list of a project: uv.lock, or else requirements.txt; None if there is none."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def requires_python(path: Path) -> str:
    """Return the versions of Python that a uv.lock is for, such as `>=3.11, <3.13`; empty for other package lists."""
    if path.name != LOCK:
        return ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = _REQUIRES.search(path.read_text())
        return found[1] if found else ""
    return ""


def digests(folder: Path, sources: Iterable[str] = NAMES) -> dict[str, str]:
    """Return the digests of a project's package lists, by name; unreadable lists are skipped.

    Parameters
    ----------
    folder : Path
        The folder of the project.
    sources : iterable of str
        Paths relative to the folder; other paths are skipped. Default: those that `find` looks for.

    Returns
    -------
    dict of str to str
    """
    found = {}
    for name in sources:
        path = folder / name
        if not Path(name).is_absolute() and ".." not in Path(name).parts and path.is_file():
            with contextlib.suppress(UsageError):
                found[name] = read(path).digest
    return found


def read(path: Path) -> PackageList:
    """Read a package list.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    PackageList

    Raises
    ------
    UsageError
        The file cannot be read, includes itself, or includes a constraints file.
    """
    if path.name == LOCK:
        return PackageList(LOCK, _text(path))
    return PackageList(path.name, "\n".join(_expand(path, ())) + "\n")


def _expand(path: Path, above: tuple[Path, ...]) -> list[str]:
    if path in above or len(above) > _MOST_FILES:
        raise UsageError(f"{path} includes itself", "remove one of the -r lines")
    lines: list[str] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        match = _INCLUDE.fullmatch(line.strip())
        if match is None:
            lines.append(line.rstrip())
        elif match[1] in ("-c", "--constraint"):
            where = f"{path}:{number}"
            raise UsageError(
                f"{where}: constraints are not sent to the nodes", "write the versions into the package list"
            )
        else:
            lines += _expand(path.parent / match["name"], (*above, path))
    return lines


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "give a package list with --requirements"
        ) from None
