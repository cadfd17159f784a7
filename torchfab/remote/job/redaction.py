"""Redact a job's secrets in everything that a node sends, without storing the secrets.

When a job starts, a digest of each secret is written into its folder. The key of the digests stays on the launch
machine, which sends it with each request, so neither machine alone reveals a secret. Answers are searched for text with
such a digest, but only in sufficiently long runs of the kind of characters that the secret has.
"""

from __future__ import annotations

import os

from torchfab.remote import job_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable
    from typing import Any

FILE = "masks.json"
SHORTEST = 8  # bytes; shorter secrets would match ordinary words, and their digests are quickly guessed
# Kinds of characters, narrowest first. A secret is searched for in runs of the first kind that covers it.
_KINDS = ("[A-Za-z0-9_-]", "[!-~]", "[^\\n]")


def write(folder: str, secrets: dict[str, str], key: str) -> None:
    """Write the digests of secrets into a job's folder.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    secrets : dict of str to str
        Values by name; each line of a value with several lines is one secret.
    key : str
        Hexadecimal, from the launch machine; if empty, nothing is written.
    """
    entries = digests(secrets, key)
    if entries:
        job_files.write_json(os.path.join(folder, FILE), entries)


def digests(secrets: dict[str, str], key: str) -> list[Any]:
    """Return the digests of secrets.

    Parameters
    ----------
    secrets : dict of str to str
        Values by name.
    key : str
        Hexadecimal; if empty, there are no digests.

    Returns
    -------
    list of [name, length, kind, digest]
        One entry for each line of each secret: length in bytes, kind of characters, hexadecimal digest.
    """
    pieces = sorted({(name, piece) for name, value in secrets.items() for piece in _pieces(value)})
    if not key or not pieces:  # hashlib is slow to import, and most jobs have no secrets
        return []
    digest = _digester(key)
    return [[name, len(piece), _kind(piece), digest(piece).hex()] for name, piece in pieces]


def _pieces(value: str) -> list[bytes]:
    lines = (line.strip() for line in value.encode("utf-8", "surrogateescape").split(b"\n"))
    return [line for line in lines if len(line) >= SHORTEST]


def _kind(piece: bytes) -> int:
    import re  # imported here: it is slow, and most jobs have no secrets

    return next(index for index, kind in enumerate(_KINDS) if re.fullmatch(f"(?:{kind})+".encode(), piece))


def _digester(key: str) -> Callable[[bytes], bytes]:
    from hashlib import blake2b

    secret = bytes.fromhex(key)[:64]
    return lambda piece: blake2b(piece, digest_size=16, key=secret).digest()


def load_redactor(folder: str, key: str) -> Callable[[Any], Any] | None:
    """Return a function that redacts the secrets of a job.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    key : str
        Hexadecimal, from the launch machine.

    Returns
    -------
    callable or None
        Takes and returns a value made of dicts, lists and strings; None when there are no secrets.
    """
    entries = job_files.read_json(os.path.join(folder, FILE)) if key else None
    return make_redactor(entries, key) if entries else None


def make_redactor(entries: list[Any], key: str) -> Callable[[Any], Any]:
    """Return a function that redacts the secrets with these digests.

    Parameters
    ----------
    entries : list
        As `digests` returns them.
    key : str
        Hexadecimal, from the launch machine.

    Returns
    -------
    callable
        Takes and returns a value made of dicts, lists and strings.
    """
    import re
    from functools import partial

    digest = _digester(key)
    searches = []
    for kind, characters in enumerate(_KINDS):
        names = {bytes.fromhex(each[3]): each[0] for each in entries if each[2] == kind}
        lengths = sorted({each[1] for each in entries if each[2] == kind}, reverse=True)
        if lengths:
            run = re.compile(f"(?:{characters}){{{lengths[-1]},}}".encode())
            searches.append(partial(run.sub, partial(_redact_run, lengths, names, digest)))

    def redact_text(text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        for search in searches:
            data = search(data)
        return data.decode("utf-8", "surrogatepass")

    def redact(value: Any) -> Any:
        if isinstance(value, str):
            return redact_text(value)
        if isinstance(value, (list, tuple)):
            return [redact(each) for each in value]
        return {name: redact(each) for name, each in value.items()} if isinstance(value, dict) else value

    return redact


def _redact_run(
    lengths: list[int], names: dict[bytes, str], digest: Callable[[bytes], bytes], match: re.Match[bytes]
) -> bytes:
    """Return the run of characters with each known secret replaced by its name in angle brackets."""
    run = match[0]
    parts: list[bytes] = []
    copied = start = 0
    while start <= len(run) - lengths[-1]:
        for length in lengths:
            name = names.get(digest(run[start : start + length])) if start + length <= len(run) else None
            if name is not None:
                parts += [run[copied:start], b"<", name.encode(), b">"]
                start = copied = start + length
                break
        else:
            start += 1
    return b"".join([*parts, run[copied:]]) if parts else run
