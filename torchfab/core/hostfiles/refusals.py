"""Reject known files that are not hosts files (ssh configs, scripts, vaults), with the fix for each."""

from __future__ import annotations

import re

from torchfab.core.hostfiles.dialect import Source

_SSH_HOST = re.compile(r"\s*Host\s+(\S.*)", re.IGNORECASE)
_SSH_KEYWORD = re.compile(r"\s*(HostName|User|Port|IdentityFile|ProxyJump|ProxyCommand)[\s=]+\S", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"\s*(?:export|set|setenv|declare|local|readonly)\s+(?:-\w+\s+)?([A-Za-z_]\w*)\b.*")
_PROMPT = re.compile(r"\s*ssh\s+(.*)")


_ONE_A_LINE = "write one host per line, or a list with commas: node1,node2"
_OTHERS = (
    (re.compile(r"-----BEGIN [A-Z ]+-----"), "a key or a certificate", "write the hosts; fab -i FILE names a key"),
    (re.compile(r"(?:@\S+ )?\S+ (?:ssh|ecdsa|sk-ssh|sk-ecdsa)-\S+ AAAA"), "known_hosts of ssh", "write the hosts"),
    (re.compile(r"(?:ssh|ecdsa)-\S+ AAAA"), "public keys of ssh", "write the hosts"),
    (
        re.compile(r"(?i)(?:host(?:name)?|node|name|ip)[,;\t ](?:ip|addr\w*|slots|gpus?|user|port|cpus?)\b"),
        "a table with titles",
        "leave the titles out, and write node1 slots=8, with the key of each value",
    ),
    (re.compile(r"\w+ ?= ?[\[(]|\w+=\("), "a program's list", _ONE_A_LINE),
    (re.compile(r"(?i)<(?:!doctype|html|\?xml)"), "a page of HTML or XML", _ONE_A_LINE),
    (re.compile(r"%PDF-"), "a file of another program", _ONE_A_LINE),
    (re.compile(r"FROM \S+$|#SBATCH|import \w+$|def \w+\("), "a program", _ONE_A_LINE),
)


def refuse(source: Source) -> None:
    """Raise an error for a text that is certainly of such a kind; return for any other.

    Parameters
    ----------
    source : Source
        The text.

    Raises
    ------
    InventoryError
        The text is of such a kind; the message names it.
    """
    text = source.text.removeprefix("\ufeff")
    if text.startswith("$ANSIBLE_VAULT"):
        raise source.error(1, "an encrypted file of ansible-vault", "pass the output of: ansible-vault view FILE")
    if text.startswith("#!"):
        interpreter = text.partition("\n")[0][2:].strip()
        raise source.error(
            1,
            f"a program ({interpreter}), not a hosts file",
            "run it, and pass its output: FILE | fab … --hostfile -",
        )
    _refuse_others(source)
    _refuse_ssh_config(source)
    _refuse_ssh_commands(source)
    _refuse_shell(source)


def _refuse_others(source: Source) -> None:
    for number, line in source.lines:
        text = " ".join(line)
        for pattern, what, fix in _OTHERS:
            if pattern.match(text):
                raise source.error(number, f"{what}, not a hosts file", fix)


def _refuse_ssh_config(source: Source) -> None:
    lines = list(enumerate(source.text.splitlines(), start=1))
    hosts = [(number, match[1]) for number, line in lines if (match := _SSH_HOST.fullmatch(line))]
    if not hosts or not any(_SSH_KEYWORD.match(line) for _, line in lines):
        return
    names = [name for _, pattern in hosts for name in pattern.split() if not re.search(r"[*?!]", name)]
    listed = ", ".join(names[:4]) or "one a line"
    raise source.error(
        hosts[0][0],
        "a configuration of ssh, not a hosts file",
        f"write the names of its hosts: {listed}; give the configuration with fab -S {source.origin}",
    )


def _refuse_ssh_commands(source: Source) -> None:
    for number, line in source.lines:
        match = _PROMPT.fullmatch(" ".join(line))
        if match:
            raise source.error(number, f"{match[0]!r} is a command, not a host", f"write {_target(match[1])}")


def _refuse_shell(source: Source) -> None:
    for number, line in enumerate(source.text.splitlines(), start=1):
        match = _ASSIGNMENT.fullmatch(line)
        if match:
            problem = f"a shell script, which sets {match[1]}, not a hosts file"
            raise source.error(number, problem, "write one host per line, or a list with commas: node1,node2")


def _target(arguments: str) -> str:
    """Return `user@host port=N` for the arguments of ssh."""
    port = re.search(r"-p\s*(\d+)", arguments)
    user = re.search(r"-l\s*(\S+)", arguments)
    rest = re.sub(r"-[A-Za-z]\s*\S+", "", arguments).split()
    host = rest[0] if rest else "user@host"
    return host + (f" user={user[1]}" if user else "") + (f" port={port[1]}" if port else "")
