"""Secrets that a job prints are hidden from whoever reads its logs, without being written down.

When a job starts, each secret leaves a digest in its folder, keyed with a key that only the launch machine keeps and
sends with its questions: neither place alone tells what the digests are of. What is answered is searched for text that
has such a digest: only where a run of the secret's own kind of characters is long enough for it.
"""

from __future__ import annotations

import os
import re
from functools import partial

from torchfab.remote import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FILE = "masks.json"
SHORTEST = 8  # bytes: hiding shorter ones would hide ordinary words, and their digests would be guessed in no time
# Kinds of characters, the narrowest first: a secret lies within a run of the first kind that has all of its own.
_KINDS = ("[A-Za-z0-9_-]", "[!-~]", "[^\\n]")


def write(folder: str, secrets: dict[str, str], key: str) -> None:
    """Write the digests of secrets into a job's folder.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    secrets : dict of str to str
        Values by name; of one with several lines, each line counts.
    key : str
        Hexadecimal, from the launch machine; empty: nothing is written.
    """
    found = digests(secrets, key)
    if found:
        files.write_json(os.path.join(folder, FILE), found)


def digests(secrets: dict[str, str], key: str) -> list[Any]:
    """Return name, length, kind of characters and digest of each piece of each secret."""
    pieces = sorted({(name, piece) for name, value in secrets.items() for piece in _pieces(value)})
    digest = _digester(key) if key else None
    return [[name, len(piece), _kind(piece), digest(piece).hex()] for name, piece in pieces if digest]


def _pieces(value: str) -> list[bytes]:
    lines = (line.strip() for line in value.encode("utf-8", "surrogateescape").split(b"\n"))
    return [line for line in lines if len(line) >= SHORTEST]


def _kind(piece: bytes) -> int:
    return next(index for index, kind in enumerate(_KINDS) if re.fullmatch(f"(?:{kind})+".encode(), piece))


def _digester(key: str) -> Callable[[bytes], bytes]:
    from hashlib import blake2b

    secret = bytes.fromhex(key)[:64]
    return lambda piece: blake2b(piece, digest_size=16, key=secret).digest()


def masker(folder: str, key: str) -> Callable[[Any], Any] | None:
    """Return what hides the secrets of a job in a value made of dicts, lists and texts; None when there are none."""
    found = files.read_json(os.path.join(folder, FILE)) if key else None
    return hider(found, key) if found else None


def hider(found: list[Any], key: str) -> Callable[[Any], Any]:
    """Return what hides pieces with these digests."""
    digest = _digester(key)
    searches = []
    for kind, characters in enumerate(_KINDS):
        names = {bytes.fromhex(each[3]): each[0] for each in found if each[2] == kind}
        lengths = sorted({each[1] for each in found if each[2] == kind}, reverse=True)
        if lengths:
            run = re.compile(f"(?:{characters}){{{lengths[-1]},}}".encode())
            searches.append(partial(run.sub, partial(_hidden, lengths, names, digest)))

    def hide(text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        for search in searches:
            data = search(data)
        return data.decode("utf-8", "surrogatepass")

    def hide_in(value: Any) -> Any:
        if isinstance(value, str):
            return hide(value)
        if isinstance(value, (list, tuple)):
            return [hide_in(each) for each in value]
        return {name: hide_in(each) for name, each in value.items()} if isinstance(value, dict) else value

    return hide_in


def _hidden(
    lengths: list[int], names: dict[bytes, str], digest: Callable[[bytes], bytes], match: re.Match[bytes]
) -> bytes:
    """Return a run of characters in which each piece with a known digest is its name in angle brackets."""
    run = match[0]
    made: list[bytes] = []
    kept = start = 0
    while start <= len(run) - lengths[-1]:
        for length in lengths:
            name = names.get(digest(run[start : start + length])) if start + length <= len(run) else None
            if name is not None:
                made += [run[kept:start], b"<", name.encode(), b">"]
                start = kept = start + length
                break
        else:
            start += 1
    return b"".join([*made, run[kept:]]) if made else run
