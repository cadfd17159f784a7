"""Host keys, as OpenSSH treats them: known and equal, or refused; Fabric itself would take any."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cache

import paramiko
from paramiko.hostkeys import HostKeyEntry

DEFAULT_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


class UnknownHostKey(paramiko.SSHException):
    """The server's key is in no known_hosts file.

    Parameters
    ----------
    name : str
        The name under which OpenSSH looks it up: `host`, or `[host]:port`.
    key : paramiko.PKey
        The key that the server showed.
    """

    def __init__(self, name: str, key: paramiko.PKey) -> None:
        super().__init__(f"no known key for {name}")
        self.name = name
        self.fingerprint = fingerprint(key)


def fingerprint(key: paramiko.PKey) -> str:
    """Return a key's fingerprint as `ssh-keygen -l` prints it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


class Refuse(paramiko.MissingHostKeyPolicy):
    """Refuse a server whose key is not known (StrictHostKeyChecking ask and yes: nobody is there to ask)."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Raise UnknownHostKey."""
        raise UnknownHostKey(hostname, key)


class AcceptNew(paramiko.MissingHostKeyPolicy):
    """Take the key of a server that is not known yet, and remember it (StrictHostKeyChecking accept-new)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Append the key to the known_hosts file."""
        os.makedirs(os.path.dirname(self.path) or ".", mode=0o700, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")


def check_with(client: paramiko.SSHClient, host: str, port: int, ssh_config: dict[str, object]) -> None:
    """Make `client` check the server's key before it authenticates.

    Parameters
    ----------
    client : paramiko.SSHClient
        Not connected yet.
    host, port : str, int
        As they will be connected to.
    ssh_config : dict
        What ssh's own configuration says of the host: UserKnownHostsFile, GlobalKnownHostsFile, StrictHostKeyChecking.
    """
    paths = _files(ssh_config)
    name = host if port == 22 else f"[{host}]:{port}"
    known = client.get_host_keys()
    for entry in _entries(paths, name):
        if entry.key is not None:
            known.add(name, entry.key.get_name(), entry.key)
    strict = str(ssh_config.get("stricthostkeychecking", "ask")).lower()
    if strict in ("no", "off"):
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    else:
        client.set_missing_host_key_policy(AcceptNew(paths[0]) if strict == "accept-new" else Refuse())


def first_file(ssh_config: dict[str, object]) -> str:
    """Return the file to which the user adds keys: the first of UserKnownHostsFile."""
    return _files(ssh_config)[0]


def _files(ssh_config: dict[str, object]) -> list[str]:
    user = str(ssh_config.get("userknownhostsfile", " ".join(DEFAULT_FILES[:2]))).split()
    system = str(ssh_config.get("globalknownhostsfile", " ".join(DEFAULT_FILES[2:]))).split()
    return [os.path.expanduser(path.strip('"')) for path in (*user, *system)]


def _entries(paths: Sequence[str], name: str) -> Iterable[HostKeyEntry]:
    for path in paths:
        plain, others = _index(path, _stamp(path))
        yield from (entry for entry in map(_parse, plain.get(name, ())) if entry)
        yield from (entry for entry in map(_parse, _matching(others, name)) if entry)


def _stamp(path: str) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_size)


@cache
def _index(path: str, stamp: tuple[int, int]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the lines of a known_hosts file by plain name, and those that must be matched (hashed, with wildcards).

    A file of thousands of lines is read once for all hosts, and only the lines of a host have their keys parsed.
    """
    plain: dict[str, list[str]] = {}
    others: list[str] = []
    if stamp == (0, 0):
        return plain, others
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split(None, 1)
            if len(words) < 2 or line[0] in "#@":  # markers (@cert-authority, @revoked) are not read yet
                continue
            if words[0][0] == "|" or any(sign in words[0] for sign in "*?!"):
                others.append(line)
            else:
                for name in words[0].split(","):
                    plain.setdefault(name, []).append(line)
    return plain, others


def _matching(lines: Iterable[str], name: str) -> Iterable[str]:
    return (line for line in lines if _matches(line.split(None, 1)[0], name))


def _matches(names: str, name: str) -> bool:
    if names.startswith("|1|"):
        return paramiko.HostKeys.hash_host(name, names) == names
    from fnmatch import fnmatchcase

    patterns = names.split(",")
    if any(pattern[0] == "!" and fnmatchcase(name, pattern[1:]) for pattern in patterns):
        return False
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _parse(line: str) -> HostKeyEntry | None:
    try:
        return HostKeyEntry.from_line(line)
    except paramiko.SSHException:  # a line that OpenSSH would skip as well
        return None
