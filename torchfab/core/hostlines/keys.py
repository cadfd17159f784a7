"""The keys of a line: `slots=8 gpus=0-3 address=10.0.0.5 python=/venv/bin/python env.NCCL_SOCKET_IFNAME=eth1`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchfab.core import environment
from torchfab.core.errors import UsageError
from torchfab.core.flag_values import is_whole
from torchfab.core.hostlines import devices, hints, targets
from torchfab.core.hostlines.words import EXPECTED, Line, unquote
from torchfab.core.lazy_dataclass import dataclass

MAX_SLOTS = 1024
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Names of our keys in other tools, and common misspellings.
_MEANT = {
    "slots": "np nproc procs processes ntasks tasks cores cpu cpus count ngpus num_gpus nproc_per_node workers ppn",
    "gpus": "gpu devices device cuda cuda_visible_devices gpu_ids",
    "address": "ip addr hostname host internal_ip private_ip ifhn adress master_addr",
    "user": "username login remote_user",
    "port": "ssh_port",
    "python": "interpreter python_path",
    "workdir": "cwd dir chdir directory",
    "setup": "before_script prolog init",
}
_ALIASES = {alias: key for key, names in _MEANT.items() for alias in names.split()}
LOGINS = ("root", "ubuntu", "ec2-user", "admin", "centos", "debian", "opc", "azureuser", "user")
# Set by the launcher for every rank: a value from a file would contradict it.
_LAUNCHER_VARIABLES = frozenset(
    (
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "NODE_RANK"),
        *("MASTER_ADDR", "MASTER_PORT"),
    )
)


@dataclass(frozen=True)
class Values:
    """The values of a line.

    Parameters
    ----------
    fields : Mapping of str to Any
        Fields of Node.
    labels : tuple of pairs of str
        Unknown keys, with their values.
    """

    fields: Mapping[str, Any]
    labels: tuple[tuple[str, str], ...] = ()


def parse(line: Line, known: Sequence[str]) -> Values:
    """Parse the words of a line after the first one.

    Parameters
    ----------
    line : Line
        The line.
    known : sequence of str
        The keys that are allowed in this kind of file; `env.NAME` allows `env.` with any name.

    Returns
    -------
    Values

    Raises
    ------
    InventoryError
        A key is unknown or occurs twice, or a value is invalid.
    """
    fields: dict[str, Any] = {}
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    for word in line.words[1:]:
        key, equals, value = word.partition("=")
        name = key.removeprefix("env.") if key.startswith("env.") and "env.NAME" in known else ""
        _check_word(line, word, value)
        if not equals or (key not in known and not name):
            _require_label(line, word, known)
        if key in {*fields, *labels} or name in env:
            raise line.error(f"{key}= is given twice, the second time as {word!r}", "leave one of them out")
        if not (value or name):
            raise line.error(f"{key}= needs a value, got {word!r}")
        if name:
            env[name] = _variable(line, name, unquote(value))
        elif key in known:
            fields[key] = _PARSERS[key](line, unquote(value))
        else:
            labels[key] = unquote(value)
    return Values({**fields, **({"env": tuple(env.items())} if env else {})}, tuple(labels.items()))


def _check_word(line: Line, word: str, value: str) -> None:
    """Raise the error about typographic quotes, an unclosed quote, or an invisible character."""
    if invisible := hints.invisible(word):
        raise line.error(f"{word!r} contains {invisible}, which is invisible", "remove it, or type the line again")
    if value[:1] in ("“", "”", "‘", "’", "„"):
        raise line.error(f"{value[:1]} in {word!r} is no quote here", "write ' or \"")
    if value[:1] in ("'", '"') and value.count(value[0]) % 2:
        raise line.error(f"the quote {value[:1]} in {word!r} is not closed", f"end the value with {value[:1]}")
    if word == "env.=" or word.startswith("env.="):
        raise line.error(f"{word!r} names no variable", "write env.NAME=value")


def _require_label(line: Line, word: str, known: Sequence[str]) -> None:
    """Raise an error for a word that is neither a key nor a label."""
    key, equals, value = word.partition("=")
    lower = key.lower().replace("-", "_")
    meant = _ALIASES.get(lower) or "".join(difflib.get_close_matches(lower, known, 1, 0.7))
    listed = "known keys here: " + ", ".join(f"{each}=" for each in known)
    if not equals:
        raise line.error(f"unknown key {key!r} in {word!r}", _bare_word(line.words[0], word) or listed)
    if not _LABEL.fullmatch(key) or key == "slots":
        raise line.error(f"unknown key {key!r} in {word!r}", listed)
    if meant:
        raise line.error(f"unknown key {key!r} in {word!r}", f"write {meant}={value}; {listed}")


def _bare_word(host: str, word: str) -> str:
    """Return the suggestion for a second word without `=`; empty if there is none."""
    if fix := _colon_for_equals(word) or hints.second_word(host, word):
        return fix
    if is_whole(word):
        return f"write a number of processes with its key: {host} slots={word}"
    if re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:]+:[0-9A-Fa-f:]*", word):
        return f"write an address for the other nodes with its key: {host} address={word}"
    if word in LOGINS:
        return f"write a login name before the host: {word}@{host}"
    if targets.HOST.fullmatch(word) and word not in _MEANT:
        return f"write a second host on its own line, or after a comma: {host},{word}"
    return ""


def _colon_for_equals(word: str) -> str:
    key, colon, value = word.partition(":")
    meant = key if key in _MEANT else _ALIASES.get(key, "")
    return f"a key stands in front of =: {meant}={value}" if colon and value and meant else ""


def _slots(line: Line, text: str) -> int:
    if not (is_whole(text) and int(text) <= MAX_SLOTS):
        raise line.error(
            f"slots={text}: not a number of processes", "give the number of processes to run there, for example slots=8"
        )
    return int(text)


def _address(line: Line, text: str) -> str:
    if not (targets.HOST.fullmatch(text) or (targets.IPV6.fullmatch(text) and text.count(":") > 1)):
        host, colon, port = text.partition(":")
        has_port = colon and is_whole(port) and targets.HOST.fullmatch(host)
        fix = f"it has no port: address={host}; port= is that of SSH" if has_port else hints.fix_for(text) or EXPECTED
        raise line.error(f"{text!r} is not a host name or address", fix)
    return text


def _path(line: Line, text: str) -> str:
    if not text.isprintable():
        raise line.error(f"python={text!r} is not a path")
    if text.startswith("~"):
        raise line.error(
            f"python={text}: not an absolute path", "write it from the root: python=/home/me/venv/bin/python"
        )
    return text


def _workdir(line: Line, text: str) -> str:
    if not text.startswith("/") or not text.isprintable():
        raise line.error(
            f"workdir={text}: not an absolute path", "write it from the root, for example workdir=/home/me/project"
        )
    return text


def _setup(line: Line, text: str) -> str:
    try:
        return environment.check_setup(text, "setup=")
    except UsageError as error:
        raise line.error(error.message, error.fix) from None


def _variable(line: Line, name: str, value: str) -> str:
    if not _VARIABLE.fullmatch(name) or "\0" in value:
        raise line.error(f"env.{name}=: {name!r} cannot name an environment variable")
    if name in _LAUNCHER_VARIABLES or name.startswith(("TORCHFAB_", "TORCHELASTIC_")):
        raise line.error(f"env.{name}=: the launcher sets {name}", "leave it out; ranks follow the order of the lines")
    if environment.is_secret(name):
        raise line.error(
            f"env.{name}=: a secret must not be in a hosts file: records and dry runs would show it",
            f"export {name} here; the setting torchfab.forward selects the variables to forward",
        )
    return value


_PARSERS: Mapping[str, Callable[[Line, str], Any]] = {
    "slots": _slots,
    "gpus": devices.parse,
    "address": _address,
    "user": targets.check_user,
    "port": targets.parse_port,
    "python": _path,
    "workdir": _workdir,
    "setup": _setup,
}
