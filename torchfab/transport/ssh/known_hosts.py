"""Read known_hosts files, and compare keys with them, as OpenSSH does (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").

This module handles text and bytes only; it does not need paramiko.
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal

from torchfab.core.lazy_dataclass import dataclass
from torchfab.transport.ssh import patterns

try:  # 2000 salted names are hashed for each of 64 hosts; hashlib's OpenSSL objects are twice as slow to copy
    from _sha1 import sha1  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from hashlib import sha1

REVOKED, AUTHORITY = "@revoked", "@cert-authority"
KeyStatus = Literal["known", "new", "changed", "revoked"]

_READ_LOCK = threading.Lock()
_BLOCK = 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))


@dataclass(frozen=True)
class Line:
    """One line of a known_hosts file.

    Parameters
    ----------
    path, number : str, int
        The file, and the line's number from 1.
    marker : str
        `@cert-authority`, `@revoked` or nothing.
    kind : str
        The key's type: `ssh-ed25519`.
    blob : bytes
        The key in SSH's wire format.
    """

    path: str
    number: int
    marker: str
    kind: str
    blob: bytes

    @property
    def location(self) -> str:
        """`file:line`."""
        return f"{self.path}:{self.number}"


@dataclass(frozen=True)
class Verdict:
    """The result of comparing a key with the known lines of its host.

    Parameters
    ----------
    status : str
        `known`, `new`, `changed` or `revoked`.
    line : Line, optional
        The line that determined the status; None for a new key.
    """

    status: KeyStatus
    line: Line | None = None


@dataclass(frozen=True)
class _RawLine:
    """A line whose key is not parsed yet: only a few of thousands of lines are ever used."""

    path: str
    number: int
    marker: str
    key: str

    def parse(self) -> Line | None:
        words = self.key.split()
        try:
            blob = base64.b64decode(words[1], validate=True)
        except (IndexError, ValueError):  # ValueError: characters that are not base64, or not even ASCII
            return None  # OpenSSH skips such a line as well
        length = int.from_bytes(blob[:4], "big")
        if blob[4 : 4 + length] != words[0].encode("utf-8", "surrogateescape"):
            return None
        return Line(self.path, self.number, self.marker, words[0], blob)


class KnownFile:
    """The lines of one file, indexed by plain name, by hashed name, and by pattern.

    Parameters
    ----------
    path : str
        The name of the file, for errors.
    text : str
        Its content.
    """

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.plain: dict[str, list[_RawLine]] = {}
        self.hashed: list[tuple[object, object, bytes, _RawLine]] = []
        self.patterns: list[tuple[str, _RawLine]] = []
        for number, line in enumerate(text.split("\n"), 1):
            words = line.split(None, 1)
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            words = words[0].split(None, 1) if marker and words else words
            if len(words) == 2 and not words[0].startswith("#") and marker in ("", REVOKED, AUTHORITY):
                self._add(words[0], _RawLine(path, number, marker, words[1]))

    def _add(self, names: str, raw: _RawLine) -> None:
        if names.startswith("|"):
            self._add_hashed(names, raw)
        elif any(sign in names for sign in "*?!"):
            self.patterns.append((names, raw))
        else:
            for name in set(names.lower().split(",")):
                self.plain.setdefault(name, []).append(raw)

    def _add_hashed(self, names: str, raw: _RawLine) -> None:
        try:
            salt, digest = (base64.b64decode(word, validate=True) for word in names.removeprefix("|1|").split("|"))
        except ValueError:
            return
        if names.startswith("|1|") and 0 < len(salt) <= _BLOCK:
            key = salt.ljust(_BLOCK, b"\0")
            self.hashed.append((sha1(key.translate(_INNER)), sha1(key.translate(_OUTER)), digest, raw))

    def lines(self, name: str) -> list[Line]:
        """Return the lines of a host.

        Parameters
        ----------
        name : str
            `host` or `[host]:port`.

        Returns
        -------
        list of Line
            In the order of the file, without lines that are malformed.
        """
        name = name.lower()
        matches = [*self.plain.get(name, ()), *self._hashed_lines(name)]
        matches += [raw for names, raw in self.patterns if names_match(names, name)]
        return [line for raw in sorted(matches, key=lambda raw: raw.number) if (line := raw.parse())]

    def _hashed_lines(self, name: str) -> list[_RawLine]:
        data = name.encode("utf-8", "surrogateescape")
        matches = []
        for inner, outer, digest, raw in self.hashed:
            inner_hash = inner.copy()  # type: ignore[attr-defined]
            inner_hash.update(data)
            outer_hash = outer.copy()  # type: ignore[attr-defined]
            outer_hash.update(inner_hash.digest())
            if outer_hash.digest() == digest:
                matches.append(raw)
        return matches


def names_match(names: str, name: str) -> bool:
    """Return whether a list of patterns matches a name.

    Parameters
    ----------
    names : str
        Comma-separated patterns with `*` and `?`; `!` before a pattern excludes the names that match it.
    name : str
        The name, in lower case.

    Returns
    -------
    bool
        True if a pattern matches and none excludes it.
    """
    return patterns.matches(names.lower().split(","), name)


def read(paths: Sequence[str]) -> tuple[KnownFile, ...]:
    """Read known_hosts files; each is read once for all hosts, and again after it has changed.

    Parameters
    ----------
    paths : sequence of str
        The files.

    Returns
    -------
    tuple of KnownFile
        Those that exist.
    """
    with _READ_LOCK:  # other threads wait for the first one, which fills the cache
        return tuple(_read(path, stamp) for path in paths if (stamp := _stamp(path)))


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


@cache
def _read(path: str, stamp: tuple[int, int, int]) -> KnownFile:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return KnownFile(path, file.read())
    except OSError:  # as in OpenSSH, a file that cannot be read counts as empty
        return KnownFile(path, "")


def lines_of(files: Iterable[KnownFile], name: str) -> tuple[Line, ...]:
    """Return the lines of a host in several files.

    Parameters
    ----------
    files : iterable of KnownFile
        The files.
    name : str
        `host` or `[host]:port`.

    Returns
    -------
    tuple of Line
        In the order of the files.
    """
    return tuple(line for file in files for line in file.lines(name))


def classify(lines: Sequence[Line], blob: bytes, authority: bytes | None = None) -> Verdict:
    """Compare the key that a host presents with its known lines.

    Parameters
    ----------
    lines : sequence of Line
        The lines of the host.
    blob : bytes
        The plain key, extracted from its certificate if it has one.
    authority : bytes, optional
        The key that signed the certificate; None without a certificate. The certificate itself is not checked here.

    Returns
    -------
    Verdict
        Known, new, changed or revoked.
    """
    for line in lines:
        if line.marker == REVOKED and line.blob in (blob, authority):
            return Verdict("revoked", line)
    for line in lines:
        if line.marker == AUTHORITY and line.blob == authority:
            return Verdict("known", line)
    plain = [line for line in lines if not line.marker]
    for line in plain:
        if line.blob == blob:
            return Verdict("known", line)
    return Verdict("changed", plain[0]) if plain else Verdict("new")


def hashed(name: str, salt: bytes) -> str:
    """Return a name as `HashKnownHosts yes` writes it.

    Parameters
    ----------
    name : str
        `host` or `[host]:port`.
    salt : bytes
        Random bytes, at most 64; OpenSSH uses 20.

    Returns
    -------
    str
        `|1|SALT|HASH`.
    """
    key = salt.ljust(_BLOCK, b"\0")
    digest = sha1(key.translate(_OUTER) + sha1(key.translate(_INNER) + name.encode()).digest()).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def append(path: str, lines: Sequence[str]) -> None:
    """Append lines to a known_hosts file in one write, so that no other process sees an incomplete line.

    The file and its directory are created if they are missing, accessible to their owner only.

    Parameters
    ----------
    path : str
        The file.
    lines : sequence of str
        The lines, without line ends.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        size = os.fstat(handle).st_size
        lacks_newline = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        file.write(("\n" * lacks_newline + "".join(f"{line}\n" for line in lines)).encode("utf-8", "surrogateescape"))
