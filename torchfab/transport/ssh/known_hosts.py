"""known_hosts files, read and judged as OpenSSH does (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"). Only text and bytes."""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

try:  # hashing 2000 salted names for each of 64 hosts: OpenSSL's objects are twice as slow to copy
    from _sha1 import sha1  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from hashlib import sha1

REVOKED, AUTHORITY = "@revoked", "@cert-authority"
Standing = Literal["known", "new", "changed", "revoked"]

_READING = threading.Lock()
_BLOCK = 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))


@dataclass(frozen=True)
class Line:
    """One line of a known_hosts file.

    Parameters
    ----------
    path, number : str, int
        Where it stands.
    marker : str
        `@cert-authority`, `@revoked` or nothing.
    kind : str
        The key's type: `ssh-ed25519`.
    blob : bytes
        The key, as it travels.
    """

    path: str
    number: int
    marker: str
    kind: str
    blob: bytes

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.path}:{self.number}"


@dataclass(frozen=True)
class Verdict:
    """What the known lines of a host say of a key, and which line said it."""

    standing: Standing
    line: Line | None = None


@dataclass(frozen=True)
class _Raw:
    """A line whose key is not parsed yet: of thousands, few are ever asked for."""

    path: str
    number: int
    marker: str
    key: str

    def parsed(self) -> Line | None:
        words = self.key.split()
        try:
            blob = base64.b64decode(words[1], validate=True)
        except (IndexError, ValueError):  # of characters that are none of base64, or not even ASCII
            return None  # OpenSSH skips such a line as well
        length = int.from_bytes(blob[:4], "big")
        if blob[4 : 4 + length] != words[0].encode("utf-8", "surrogateescape"):
            return None
        return Line(self.path, self.number, self.marker, words[0], blob)


class KnownFile:
    """The lines of one file, by plain name, by hashed name, and those with patterns.

    Parameters
    ----------
    path, text : str
        Its name, for errors, and what is in it.
    """

    def __init__(self, path: str, text: str) -> None:
        self.plain: dict[str, list[_Raw]] = {}
        self.hashed: list[tuple[object, object, bytes, _Raw]] = []
        self.patterns: list[tuple[str, _Raw]] = []
        for number, line in enumerate(text.split("\n"), 1):
            words = line.split(None, 1)
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            words = words[0].split(None, 1) if marker and words else words
            if len(words) == 2 and not words[0].startswith("#") and marker in ("", REVOKED, AUTHORITY):
                self._add(words[0], _Raw(path, number, marker, words[1]))

    def _add(self, names: str, raw: _Raw) -> None:
        if names.startswith("|"):
            self._add_hashed(names, raw)
        elif any(sign in names for sign in "*?!"):
            self.patterns.append((names, raw))
        else:
            for name in set(names.lower().split(",")):
                self.plain.setdefault(name, []).append(raw)

    def _add_hashed(self, names: str, raw: _Raw) -> None:
        try:
            salt, digest = (base64.b64decode(word, validate=True) for word in names.removeprefix("|1|").split("|"))
        except ValueError:
            return
        if names.startswith("|1|") and 0 < len(salt) <= _BLOCK:
            key = salt.ljust(_BLOCK, b"\0")
            self.hashed.append((sha1(key.translate(_INNER)), sha1(key.translate(_OUTER)), digest, raw))

    def lines(self, name: str) -> list[Line]:
        """Return the lines of a host, by the name under which it is looked up: `host` or `[host]:port`."""
        name = name.lower()
        found = [*self.plain.get(name, ()), *self._hashed_lines(name)]
        found += [raw for names, raw in self.patterns if names_match(names, name)]
        return [line for raw in sorted(found, key=lambda raw: raw.number) if (line := raw.parsed())]

    def _hashed_lines(self, name: str) -> list[_Raw]:
        data = name.encode("utf-8", "surrogateescape")
        found = []
        for inner, outer, digest, raw in self.hashed:
            first = inner.copy()  # type: ignore[attr-defined]
            first.update(data)
            second = outer.copy()  # type: ignore[attr-defined]
            second.update(first.digest())
            if second.digest() == digest:
                found.append(raw)
        return found


def names_match(names: str, name: str) -> bool:
    """Say whether a comma-separated list of patterns (`*`, `?`, `!` before what must not match) names a host."""
    patterns = names.lower().split(",")
    if any(_pattern(each[1:]).fullmatch(name) for each in patterns if each.startswith("!")):
        return False
    return any(_pattern(each).fullmatch(name) for each in patterns if not each.startswith("!"))


@cache
def _pattern(text: str) -> re.Pattern[str]:
    signs = {"*": ".*", "?": "."}
    return re.compile("".join(signs.get(sign) or re.escape(sign) for sign in text), re.DOTALL)


def read(paths: Sequence[str]) -> tuple[KnownFile, ...]:
    """Return the files that exist; each is read once for all hosts, and again when it has changed."""
    with _READING:  # threads that come at the same moment wait for the first of them
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
    except OSError:  # as OpenSSH: a file that cannot be read knows nobody
        return KnownFile(path, "")


def lines_of(files: Iterable[KnownFile], name: str) -> tuple[Line, ...]:
    """Return the lines of a host in all files, in their order."""
    return tuple(line for file in files for line in file.lines(name))


def judge(lines: Sequence[Line], blob: bytes, authority: bytes | None = None) -> Verdict:
    """Say what the lines of a host make of the key that it shows.

    Parameters
    ----------
    lines : sequence of Line
        Those of the host.
    blob : bytes
        The key, without a certificate around it.
    authority : bytes, optional
        The key that signed its certificate; None where it showed none. The certificate itself is not checked here.
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
    """Return a name as `HashKnownHosts yes` writes it."""
    key = salt.ljust(_BLOCK, b"\0")
    digest = sha1(key.translate(_OUTER) + sha1(key.translate(_INNER) + name.encode()).digest()).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def append(path: str, lines: Sequence[str]) -> None:
    """Append lines to a known_hosts file in one write, so that no reader and no other writer sees half of one.

    The file and its folder are made where they are missing, for their owner only.

    Raises
    ------
    OSError
        It cannot be written.
    """
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        size = os.fstat(handle).st_size
        unfinished = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        file.write(("\n" * unfinished + "".join(f"{line}\n" for line in lines)).encode("utf-8", "surrogateescape"))
